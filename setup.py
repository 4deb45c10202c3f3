"""Package metadata from settings.ini, so that nbdev and pip read the same values."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

root = Path(__file__).parent
settings = ConfigParser(delimiters=["="])
settings.read(root / "settings.ini", encoding="utf-8")
cfg = settings["DEFAULT"]

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(root / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    license="Apache-2.0",
    url=cfg["git_url"],
    keywords=cfg["keywords"],
    packages=[cfg["lib_path"]],
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require={"dev": cfg["dev_requirements"].split()},
)
