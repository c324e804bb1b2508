"""What pyproject.toml cannot say: an editable install maps the checkout's agents and baselines besides genenv.

A wheel holds genenv alone, since `agents` and `baselines` are no names to claim in everybody's site-packages.
"""

from setuptools import setup
from setuptools.command.editable_wheel import editable_wheel


class EditableCheckout(editable_wheel):
    """Makes the checkout's other packages importable from anywhere."""

    def run(self):
        """Builds the editable wheel."""
        self.distribution.packages = [*self.distribution.packages, "agents", "baselines"]
        super().run()


setup(cmdclass={"editable_wheel": EditableCheckout})
