import torch

from genenv import data
from genenv.data import digits


def real_like(labels, generator):
    return data.real_like(digits(), labels, generator)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_digits_are_images_with_labels():
    images, labels = digits()
    assert images.shape == (1797, 1, 8, 8)
    assert images.dtype == torch.float32
    assert (images.min(), images.max()) == (0.0, 1.0)
    assert labels.dtype == torch.int64
    assert labels.unique().tolist() == list(range(10))
    assert labels[:10].tolist() == list(range(10))  # as scikit-learn lists them


def test_real_images_have_the_labels_that_were_asked_for():
    images, classes = digits()
    labels = torch.randint(10, (300,), generator=rng())
    chosen = real_like(labels, rng(1))
    assert chosen.shape == (300, 1, 8, 8)
    same = (chosen[:, None] == images).flatten(2).all(2)  # (300, 1797)
    assert same.any(1).all()
    assert torch.equal(classes[same.int().argmax(1)], labels)


def test_every_image_of_a_label_may_come():
    images, classes = digits()
    for label in (0, 9):
        chosen = real_like(torch.full((4000,), label), rng())
        assert len(chosen.flatten(1).unique(dim=0)) == len(images[classes == label].flatten(1).unique(dim=0))


def test_the_generator_alone_decides():
    labels = torch.arange(10).repeat(10)
    chosen = real_like(labels, rng(7))
    torch.manual_seed(1)
    assert torch.equal(real_like(labels, rng(7)), chosen)
    assert not torch.equal(real_like(labels, rng(8)), chosen)
    generator = rng(7)
    assert not torch.equal(real_like(labels, generator), real_like(labels, generator))
