"""What is fuzzed: each reader with good files of its kind, and how a mischief-maker mends what he changed.

Digests are brought into line half of the time: a digest finds accidents, and who means harm writes a new one.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from protocols.frozen import digest_of
from tests.fuzz.mutations import BYTES, Mutation, json_values, yaml_lines
from tests.fuzz.weights_and_images import (
    checkpoints,
    classifiers,
    images,
    published,
    read_checkpoint,
    read_classifier_file,
    read_image,
    read_published_file,
    read_weights,
    safetensors,
)
from tests.fuzz.zips import npz_bytes, restored, safetensors_header, zip_members

Read = Callable[[Path, bytes], object]


@dataclass(frozen=True, kw_only=True)
class Target:
    """`read` is given an empty folder and the bytes; `group` is what `--reader` chooses by."""

    name: str
    group: str
    seeds: Callable[[], tuple[bytes, ...]]
    read: Read
    structured: Mutation | None = None


def sealed(content: bytes) -> bytes:
    """A JSON object with the digest of its other fields, if it is one."""
    try:
        values = json.loads(content)
        values["digest"] = digest_of({name: value for name, value in values.items() if name != "digest"})
        return json.dumps(values, indent=1, ensure_ascii=False).encode()
    except (ValueError, TypeError, RecursionError, AttributeError):
        return content


def sealed_values(random: Random, content: bytes) -> bytes:
    return sealed(json_values(random, content))


# Protocols and cluster files ----------------------------------------------------------------------------


def _protocols() -> tuple[bytes, ...]:
    root = Path(__file__).parents[2]
    return ((root / "tests" / "tiny.yaml").read_bytes(), (root / "protocols" / "cifar.yaml").read_bytes())


def _read_protocol(folder: Path, content: bytes) -> object:
    from protocols.reader import Reader

    return Reader("strange.yaml", content).protocol().digest


def _settings() -> tuple[bytes, ...]:
    return (b"pretraining.epochs=3", b"pretraining.betas=[0.9, 0.999]", b"trunks.vit-tiny-test.depth=4",
            b"evaluations.finetune.peak_lr=1e-3", b"data.name=digits")  # fmt: skip


def _read_setting(folder: Path, content: bytes) -> object:
    """What follows --set, as a shell hands it over: no zero bytes, and anything else."""
    from protocols.reader import Reader

    reader = Reader("tiny.yaml", _protocols()[0])
    reader.override(os.fsdecode(content.replace(b"\0", b"")))
    return reader.protocol().digest


def _read_plan(folder: Path, content: bytes) -> object:
    """As far as `plan` goes with it: selection, resolved hyperparameters and cells."""
    from benchmark.plan import make_plan
    from benchmark.selection import select
    from protocols import load_protocol

    path = folder / "strange.yaml"
    path.write_bytes(content)
    protocol = load_protocol(str(path))
    return [cell.id for cell in make_plan(protocol, select(protocol))]


def _clusters() -> tuple[bytes, ...]:
    return (
        b"partition: gpu\ntime: 24:00:00\ngpus_per_node: 4\ngpu_type: h100\ncpus_per_process: 16\n"
        b"memory_per_process: 48G\nrequeues: 3\nsetup: [module load python, export A=1]\n"
        b"sbatch: {exclusive: true, comment: none}\n"
        b"stages:\n  linear-probe: {time: 2-00:00:00, partition: short}\n",
    )


def _read_cluster(folder: Path, content: bytes) -> object:
    from benchmark.cluster_file import load_cluster_file

    path = folder / "cluster.yaml"
    path.write_bytes(content)
    return load_cluster_file(path)


# Records, predictions and bundles -----------------------------------------------------------------------


@cache
def _lab_bundle() -> bytes:
    """A bundle of one probe with all that it was made from, weights and a plug-in's text included."""
    import tempfile

    from tests.benchmark.made_records import Lab
    from tests.error_settings import TINY

    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(Path(folder) / "lab", methods=["mim"])
        trunk = lab.folder("pretrain") / "checkpoints" / "backbone.safetensors"
        trunk.parent.mkdir()
        trunk.write_bytes(f"tokens checkpoints/backbone.safetensors {lab.id('pretrain')}".encode())
        plugins = {"ring.py": b"METHODS = ()\n"}
        lab.bundle(
            Path(folder) / "lab.tar",
            [lab.id("linear-probe")],
            with_weights=True,
            configuration=TINY.read_bytes(),
            plugins=plugins,
        )
        return (Path(folder) / "lab.tar").read_bytes()


@cache
def _lab() -> tuple[Any, dict[str, bytes]]:
    import tempfile

    from tests.benchmark.made_records import contents_of

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lab.tar"
        path.write_bytes(_lab_bundle())
        return contents_of(path)


def _records() -> tuple[bytes, ...]:
    return tuple(content for path, content in _lab()[1].items() if path.endswith("record.json"))


def _read_record(folder: Path, content: bytes) -> object:
    from leaderboard.origins import read_origin
    from leaderboard.record import read_record

    (folder / "record.json").write_bytes(content)
    return read_record(folder), read_origin(folder)


def _predictions() -> tuple[bytes, ...]:
    from tests.benchmark.made_records import predictions_file

    return (predictions_file(10), restored(predictions_file(10)))


def _read_predictions(folder: Path, content: bytes) -> object:
    from leaderboard.predictions import predictions_of
    from leaderboard.record import PREDICTIONS_NAME, Record

    record = Record.model_validate_json(_records()[0])
    artefacts = {PREDICTIONS_NAME: hashlib.sha256(content).hexdigest()}
    record = record.model_copy(update={"artefacts": artefacts})
    return predictions_of(content, record, path=folder / PREDICTIONS_NAME, remedy="restore it")


def _bundles() -> tuple[bytes, ...]:
    return (_lab_bundle(),)


def _mischievous_bundle(random: Random, content: bytes) -> bytes:
    """One file in it, or its manifest, changed, and every digest made to agree."""
    from leaderboard.bundle import ending, member_header, padding

    manifest, files = _lab()
    if random.random() < 0.5:
        tree = json.loads(json_values(random, manifest.text()))
        text = json.dumps(tree, indent=1, ensure_ascii=False).encode("utf-8", "surrogatepass")
        text = sealed(text) + b"\n" if random.random() < 0.7 else text
        made = member_header("manifest.json", len(text)) + text + padding(len(text))
    else:
        import tempfile

        from tests.benchmark.made_records import forge

        path = random.choice(sorted(files))
        mutate = (
            npz_bytes
            if path.endswith(".npz")
            else sealed_values
            if "record" in path
            else random.choice(BYTES)
        )
        with tempfile.TemporaryDirectory() as folder:
            forge(Path(folder) / "forged.tar", manifest, {**files, path: mutate(random, files[path])})
            return (Path(folder) / "forged.tar").read_bytes()
    for path, one in sorted(files.items()):
        made += member_header(path, len(one)) + one + padding(len(one))
    return made + ending(len(made))


def _read_bundle(folder: Path, content: bytes) -> object:
    from benchmark.merging import merge_bundle
    from leaderboard.bundle import open_bundle

    (folder / "strange.tar").write_bytes(content)
    with open_bundle(folder / "strange.tar") as bundle:
        return merge_bundle(bundle, folder / "work")


# Manifests ----------------------------------------------------------------------------------------------


@cache
def _store() -> dict[str, bytes]:
    import tempfile

    from tests.tokenizers.made_stores import MadeIds, StandIn, write_made

    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        write_made(store, MadeIds(20), tokenizer=StandIn(codebook_size=16), labels=np.arange(20))
        return {path.name: path.read_bytes() for path in store.iterdir()}


def _store_manifests() -> tuple[bytes, ...]:
    return (_store()["manifest.json"],)


def _read_store(folder: Path, content: bytes) -> object:
    from tokenizers.store import open_store

    for name, one in _store().items():
        (folder / name).write_bytes(one)
    (folder / "manifest.json").write_bytes(content)
    store = open_store(folder, verify=False)
    return store.tokens(np.arange(len(store))), [store.image_id(row) for row in range(len(store))]


def _store_files() -> tuple[bytes, ...]:
    return tuple(_store()[name] for name in ("tokens.npy", "image_ids.txt", "id_offsets.npy", "id_index.npy"))


def _read_store_file(folder: Path, content: bytes) -> object:
    """A file that was changed and whose digest was made to agree: opened, and every row read."""
    from tokenizers.store import open_store

    files = dict(_store())
    magic = content[:6] == b"\x93NUMPY"
    name = {True: "id_index.npy", False: "image_ids.txt"}[magic]
    if magic and b"<u2" in content[:128]:
        name = "tokens.npy"
    elif magic and len(content) == len(files["id_offsets.npy"]):
        name = "id_offsets.npy"
    files[name] = content
    manifest = json.loads(files["manifest.json"])
    manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    files["manifest.json"] = sealed(json.dumps(manifest).encode())
    for one, text in files.items():
        (folder / one).write_bytes(text)
    store = open_store(folder)
    ids = [store.image_id(row) for row in range(len(store))]
    return store.tokens(np.arange(len(store))), store.rows(ids[:1])


def _pack_manifests() -> tuple[bytes, ...]:
    from benchmark.packed import PackManifest, decoders

    sha256 = "0" * 64
    manifest = PackManifest(
        data_set="made", data_digest=sha256, listing_digest=sha256, images=20, image_size=8, bytes=4000,
        decoders=decoders(), images_per_shard=10, shards=(sha256, sha256),
    )  # fmt: skip
    return (manifest.sealed().model_dump_json(indent=1).encode(),)


def _read_pack(folder: Path, content: bytes) -> object:
    from benchmark.packed import read_manifest

    (folder / "manifest.json").write_bytes(content)
    return read_manifest(folder)


def _data_manifests() -> tuple[bytes, ...]:
    header = {
        "format": "fair-mim-manifest",
        "version": 1,
        "data_set": "made",
        "splits": {"test": {"images": 2, "classes": 1}, "train": {"images": 3, "classes": 2}},
    }
    lines = ["test\ta\ttest/a/0.png\t10", "test\ta\ttest/a/1.png\t11", "train\ta\ttrain/a/0.png\t12",
             "train\tb\ttrain/b/0.png\t13", "train\tb\ttrain/b/1.png\t14"]  # fmt: skip
    return ("\n".join([json.dumps(header), *lines, ""]).encode(),)


def _read_data_manifest(folder: Path, content: bytes) -> object:
    """The text is packed, but for one in eight, which is taken for the packed file."""
    from benchmark.data_manifest import open_manifest

    path = folder / "manifest.tsv.gz"
    packed = gzip.compress(content, 1, mtime=0)
    if len(content) % 8 == 0:
        at = len(content) % len(packed)
        packed = packed[:at] + content[:4] + packed[at + 4 :]
    path.write_bytes(packed)
    return list(open_manifest(path).entries())


TARGETS = (
    Target(name="protocol", group="protocol", seeds=_protocols, read=_read_protocol, structured=yaml_lines),
    Target(name="plan", group="protocol", seeds=_protocols, read=_read_plan, structured=yaml_lines),
    Target(name="setting", group="protocol", seeds=_settings, read=_read_setting),
    Target(name="cluster file", group="protocol", seeds=_clusters, read=_read_cluster, structured=yaml_lines),
    Target(name="record", group="record", seeds=_records, read=_read_record, structured=sealed_values),
    Target(
        name="predictions", group="record", seeds=_predictions, read=_read_predictions, structured=npz_bytes
    ),
    Target(
        name="bundle", group="manifest", seeds=_bundles, read=_read_bundle, structured=_mischievous_bundle
    ),
    Target(
        name="token store",
        group="manifest",
        seeds=_store_manifests,
        read=_read_store,
        structured=sealed_values,
    ),
    Target(name="token store's files", group="manifest", seeds=_store_files, read=_read_store_file),
    Target(name="pack", group="manifest", seeds=_pack_manifests, read=_read_pack, structured=sealed_values),
    Target(name="data set's manifest", group="manifest", seeds=_data_manifests, read=_read_data_manifest),
    Target(
        name="checkpoint",
        group="checkpoint",
        seeds=checkpoints,
        read=read_checkpoint,
        structured=zip_members,
    ),
    Target(
        name="weights",
        group="checkpoint",
        seeds=safetensors,
        read=read_weights,
        structured=safetensors_header,
    ),
    Target(
        name="classifier",
        group="checkpoint",
        seeds=classifiers,
        read=read_classifier_file,
        structured=zip_members,
    ),
    Target(
        name="published weights",
        group="checkpoint",
        seeds=published,
        read=read_published_file,
        structured=zip_members,
    ),
    Target(name="image", group="image", seeds=images, read=read_image),
)
GROUPS = tuple(dict.fromkeys(target.group for target in TARGETS))
