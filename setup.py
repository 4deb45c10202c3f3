"""Package metadata from settings.ini, so that nbdev and pip read the same values."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

root = Path(__file__).parent
settings = ConfigParser(delimiters=["="])
settings.read(root / "settings.ini", encoding="utf-8")
cfg = settings["DEFAULT"]

models, repro, cluster, dev = (cfg[f"{extra}_requirements"].split() for extra in ("models", "repro", "cluster", "dev"))

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(root / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    url=cfg["git_url"],
    project_urls={
        "Source": cfg["git_url"],
        "Issues": f"{cfg['git_url']}/issues",
        "Documentation": f"{cfg['git_url']}/blob/{cfg['branch']}/nbs/index.ipynb",
        "Paper": "https://arxiv.org/abs/2404.05393",
    },
    keywords=cfg["keywords"],
    classifiers=cfg["classifiers"].strip().splitlines(),
    packages=[cfg["lib_path"]],
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require={
        "models": models,
        "repro": models + repro,
        "cluster": models + repro + cluster,
        "dev": models + repro + cluster + dev,
    },
    entry_points={"console_scripts": cfg["console_scripts"].split()},
)
