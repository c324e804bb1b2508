"""The papers' closed loops in plain Python, one image at a time, to compare the environments with."""

import math


def softmax(logits):
    top = max(logits)
    weights = [math.exp(x - top) for x in logits]
    return [w / sum(weights) for w in weights]


def maskgit_decision(tokens, conditional, unconditional, mask_id, params, uniform, gumbel):
    """Returns the complete grid and the masked grid after one decision of MaskGIT as in AdaGen.

    Args:
        tokens: L token ids, `mask_id` where open.
        conditional: L rows of logits with the label.
        unconditional: L rows of logits without it.
        mask_id: id of the mask token.
        params: mask_ratio, mask_temperature, token_temperature, guidance_weight.
        uniform: L numbers that draw the tokens.
        gumbel: L numbers that disturb the confidence.
    """
    sampled, confidence = [], []
    for token, c, u, draw, noise in zip(tokens, conditional, unconditional, uniform, gumbel, strict=True):
        guided = [a + params["guidance_weight"] * (a - b) for a, b in zip(c, u, strict=True)]
        if token != mask_id:
            sampled.append(token)
            confidence.append(math.inf)
            continue
        cumulative, chosen = 0.0, 0
        for chosen, p in enumerate(softmax([x / params["token_temperature"] for x in guided])):  # noqa: B007
            cumulative += p
            if cumulative > draw:
                break
        sampled.append(chosen)
        confidence.append(math.log(softmax(guided)[chosen]) + params["mask_temperature"] * noise)
    num_masked = min(math.floor(params["mask_ratio"] * len(tokens)), len(tokens) - 1)
    cutoff = sorted(confidence)[num_masked]
    return sampled, [mask_id if s < cutoff else t for t, s in zip(sampled, confidence, strict=True)]


def var_token(conditional, unconditional, ratio, params, uniform, top_k_rule):
    """Returns the token of one place of a scale of VAR as in AdaGen: guidance, top-k, top-p, then the temperature.

    Args:
        conditional: V logits with the label.
        unconditional: V logits without it.
        ratio: number of the scale over that of the last one.
        params: guidance_weight, top_k, top_p, token_temperature.
        uniform: the number that draws the token.
        top_k_rule: "released" where a top-k below 1 keeps all tokens, "monotone" where it keeps one.
    """
    weight = params["guidance_weight"] * ratio
    logits = [(1 + weight) * c - weight * u for c, u in zip(conditional, unconditional, strict=True)]
    k = int(params["top_k"])
    if k < 1:
        k = len(logits) if top_k_rule == "released" else 1
    cutoff = sorted(logits, reverse=True)[min(k, len(logits)) - 1]
    logits = [x if x >= cutoff else -math.inf for x in logits]
    probability, below = softmax(logits), 0.0
    for v in sorted(range(len(logits)), key=logits.__getitem__)[:-1]:  # the likeliest one stays
        below += probability[v]
        if below <= 1 - params["top_p"]:
            logits[v] = -math.inf
    cumulative, chosen = 0.0, 0
    for chosen, p in enumerate(softmax([x / params["token_temperature"] for x in logits])):  # noqa: B007
        cumulative += p
        if cumulative > uniform:
            break
    return chosen


def smooth(actions, decay):
    """Returns the moving averages m_t = decay m_{t-1} + (1 - decay) a_t, m_0 = a_0, of a list of numbers."""
    averages = []
    for action in actions:
        averages.append(action if not averages else decay * averages[-1] + (1 - decay) * action)
    return averages
