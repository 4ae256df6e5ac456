"""Sampled features in one file: which rows are whose, whoever writes them, and what damage is noticed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from protocols.errors import HarnessError
from tokenizers.feature_file import FEATURES_NAME, FeatureFile

IMAGES, PATCHES, WIDTH = 2500, 9, 4
SIZES: dict[str, Any] = {"images": IMAGES, "patches": PATCHES, "width": WIDTH, "rows": 3100, "seed": 7}


def feature_file(folder: Path, **changes: Any) -> FeatureFile:
    made = FeatureFile(folder, **(SIZES | {"identity": {"code": "a"}} | changes))
    made.prepare()
    return made


def features_of(positions: Any) -> Tensor:
    """(b, N, D): each number tells image, patch and channel apart, and float16 holds it."""
    images = torch.as_tensor(positions).reshape(-1, 1, 1)
    patches, channels = torch.arange(PATCHES).reshape(1, -1, 1), torch.arange(WIDTH)
    return torch.where(
        channels == 0, images % 1024, torch.where(channels == 1, patches, images // 1024)
    ).float()


def write(made: FeatureFile, shard: int, *, batch: int = 64) -> None:
    made.write(shard, (features_of(part) for part in torch.as_tensor(made.wanted(shard)).split(batch)))


@pytest.mark.parametrize("rows", [3100, 700, 2500, IMAGES * PATCHES])
def test_rows_are_spread_evenly_and_are_what_was_written(tmp_path: Path, rows: int) -> None:
    made = feature_file(tmp_path, rows=rows)
    assert made.shards.count == 3
    for shard in (2, 0, 1):
        write(made, shard)
    found = made.features()
    assert (found.shape, found.dtype) == ((rows, WIDTH), np.float16)
    assert not found.flags.writeable
    numbers = found.astype(int)
    whose = numbers[:, 0] + 1024 * numbers[:, 2]
    expected = [(row_image * rows // IMAGES, (row_image + 1) * rows // IMAGES) for row_image in range(IMAGES)]
    assert whose.tolist() == [
        image for image, (start, end) in enumerate(expected) for _ in range(end - start)
    ]
    for image, (start, end) in enumerate(expected):
        patches = found[start:end, 1].astype(int).tolist()
        assert patches == sorted(set(patches)) == made.patches_of(image).tolist()
    wanted = np.concatenate([made.wanted(shard) for shard in range(3)])
    np.testing.assert_array_equal(wanted, np.unique(whose))


def test_patches_are_drawn_from_seed_and_image_alone(tmp_path: Path) -> None:
    made, other = feature_file(tmp_path / "a", rows=9000), feature_file(tmp_path / "b", rows=9000, seed=8)
    drawn = np.array([made.patches_of(image)[:3] for image in range(IMAGES)])
    assert (drawn != np.array([other.patches_of(image)[:3] for image in range(IMAGES)])).any()
    # 9000 rows of 2500 images are 3 or 4 of 9 patches; each patch is as likely as another.
    counts = np.bincount(np.concatenate([made.patches_of(image) for image in range(IMAGES)]), minlength=9)
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(9000 / 9)
    # One draw stands here for good: a file begun by one version is finished by another.
    assert made.patches_of(0).tolist() == [1, 4, 8]


def test_the_bytes_depend_on_no_process_batch_or_order(tmp_path: Path) -> None:
    one = feature_file(tmp_path / "one")
    for shard in range(3):
        write(one, shard)
    several = [feature_file(tmp_path / "two") for _ in range(2)]
    for rank in (1, 0):
        for shard in several[rank].shards.open_shards(rank=rank, processes=2):
            write(several[rank], shard, batch=17)
    same = [(tmp_path / folder / FEATURES_NAME).read_bytes() for folder in ("one", "two")]
    assert same[0] == same[1]
    plain = np.load(tmp_path / "one" / FEATURES_NAME, allow_pickle=False)
    np.testing.assert_array_equal(plain, one.features())


def test_work_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    made = feature_file(tmp_path)
    write(made, 1)

    class Killed(Exception):
        pass

    def cut() -> Iterator[Tensor]:
        yield features_of(made.wanted(0)[:10])
        raise Killed

    with pytest.raises(Killed):
        made.write(0, cut())
    with pytest.raises(HarnessError, match="2 of 3 shards are not done; run the command again"):
        made.features()
    again = feature_file(tmp_path)
    assert again.shards.open_shards() == [0, 2]
    for shard in (0, 2):
        write(again, shard)
    whole = feature_file(tmp_path / "whole")
    for shard in range(3):
        write(whole, shard)
    np.testing.assert_array_equal(again.features(), whole.features())


def test_work_of_another_identity_is_dropped(tmp_path: Path) -> None:
    write(feature_file(tmp_path), 0)
    for change in ({"seed": 8}, {"rows": 3000}, {"identity": {"code": "b"}}, {"width": 5}):
        assert feature_file(tmp_path, **change).shards.done_count() == 0
        write(feature_file(tmp_path), 0)


def test_damage_is_noticed_and_done_again(tmp_path: Path) -> None:
    made = feature_file(tmp_path)
    for shard in range(3):
        write(made, shard)
    path = tmp_path / FEATURES_NAME
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(HarnessError, match=r"features\.npy: 1 of 3 shards are not as they were written"):
        made.features()
    assert made.shards.open_shards() == [2]
    write(made, 2)
    assert path.read_bytes() == content
    made.features()
    path.write_bytes(content[:-100])
    with pytest.raises(HarnessError, match="3 of 3 shards"):
        made.features()
    path.unlink()
    again = feature_file(tmp_path)
    for shard in again.shards.open_shards():
        write(again, shard)
    assert path.read_bytes() == content


def test_unsuitable_features_are_refused(tmp_path: Path) -> None:
    made = feature_file(tmp_path)
    wanted = features_of(made.wanted(0))
    for batches, message in (
        ([wanted[:-1]], rf"features of {len(wanted) - 1} images, not of {len(wanted)}"),
        ([wanted, wanted[:1]], rf"after {len(wanted)} images, but {len(wanted)} images of 9 x 4"),
        ([wanted[:, :-1]], r"features \(1024, 8, 4\) after 0 images"),
        ([wanted * 1e5], "beyond float16's 65504"),
        ([wanted * torch.nan], "a feature is NaN"),
    ):
        with pytest.raises(HarnessError, match=message):
            made.write(0, batches)
        assert not made.shards.is_done(0)


@pytest.mark.parametrize("rows", [0, IMAGES * PATCHES + 1])
def test_more_rows_than_patches_are_refused(tmp_path: Path, rows: int) -> None:
    with pytest.raises(HarnessError, match=rf"sampled_features {rows} .* set it from 1 to 22500"):
        feature_file(tmp_path, rows=rows)
