import numpy as np
import pytest
import torch

from foundry.images import Preprocessing
from training.probes.baselines import patch_baseline, raw_pixels
from training.probes.passes import (
    CROP,
    BaselinePasses,
    ImageList,
    NetworkPasses,
    PixelStore,
    Request,
    View,
    native_size,
)

IMAGES = [np.random.default_rng(seed).integers(0, 256, (24 + seed, 40, 3)).astype(np.uint8) for seed in range(6)]
PREPROCESSING = Preprocessing(resize=16, crop=16)
WHOLE = View("whole", grid=3)


class Network:
    """Patches of 8 pixels; what they see is their mean colour."""

    patch_size = 8

    def __init__(self):
        self.shapes = []

    def __call__(self, pixels):
        self.shapes.append(tuple(pixels.shape))
        patches = pixels.unfold(2, 8, 8).unfold(3, 8, 8).mean((4, 5)).flatten(2).mT
        return {"cls": pixels.mean((2, 3)), "patches": patches}


def lists(reads=None):
    def load(index):
        if reads is not None:
            reads.append(index)
        return IMAGES[index]

    return {"some": ImageList(6, load), "few": ImageList(2, IMAGES.__getitem__)}


def test_one_pass_serves_all_protocols_that_look_at_a_list():
    network = Network()
    requests = [Request("some"), Request("some", patches=True), Request("some", layers=4), Request("some", WHOLE)]
    passes = NetworkPasses(network, PREPROCESSING, lists(), requests, batch=4)
    first = passes.features("some")
    assert first.patches is not None  # since one of them wants it
    for _ in requests:
        assert passes.features("some") is first
    assert passes.features("some", WHOLE).patches is None
    assert passes.forwards == {("some", CROP): 6, ("some", WHOLE): 6}
    assert network.shapes == [(4, 3, 16, 16), (2, 3, 16, 16), (4, 3, 24, 24), (2, 3, 24, 24)]


def test_features_are_forgotten_when_the_last_protocol_is_done():
    requests = [Request("some"), Request("some", patches=True), Request("few")]
    passes = NetworkPasses(Network(), PREPROCESSING, lists(), requests)
    first = passes.features("some")
    passes.done(requests[:1])
    assert passes.features("some") is first
    passes.done(requests[1:2])
    assert not passes._kept
    assert passes.forwards.total() == 6


def test_native_images_keep_their_proportions():
    view = View("native", grid=3)
    network = Network()
    passes = NetworkPasses(network, PREPROCESSING, lists(), [Request("some", view)])
    maps = list(passes.maps("some", view))
    assert [each.shape for each in maps] == [(3, round(3 * 40 / (24 + seed)), 3) for seed in range(6)]
    assert passes.forwards == {("some", view): 6}
    red = PREPROCESSING.normalise(np.full((1, 1, 3), 128, np.uint8))[0].item()
    assert abs(maps[0][..., 0].mean() - red) < 0.2


def test_native_sizes():
    assert native_size(480, 854, 30, 16) == (480, 848)
    assert native_size(854, 480, 30, 8) == (424, 240)
    assert native_size(10, 10, 5, 4) == (20, 20)


def test_pixels_are_read_once_for_networks_that_see_the_same_and_within_the_memory():
    reads = []
    store = PixelStore(lists(reads))
    for _ in range(2):
        passes = NetworkPasses(Network(), PREPROCESSING, store.lists, [Request("some")], pixels=store)
        passes.features("some")
    assert reads == list(range(6))
    other = Preprocessing(resize=24, crop=16)
    NetworkPasses(Network(), other, store.lists, [Request("some")], pixels=store).features("some")
    assert len(reads) == 12
    small = PixelStore(lists(reads), memory=6 * 16 * 16 * 3 - 1)
    for _ in range(2):
        NetworkPasses(Network(), PREPROCESSING, small.lists, [Request("some")], pixels=small).features("some")
    assert len(reads) == 24


def test_all_lists_share_the_memory():
    store = PixelStore(lists(), memory=6 * 16 * 16 * 3 + 100)
    for name in ("some", "few"):
        NetworkPasses(Network(), PREPROCESSING, store.lists, [Request(name)], pixels=store).features(name)
    assert store.of("some", CROP, PREPROCESSING, 8).nbytes == 6 * 16 * 16 * 3
    assert store.of("few", CROP, PREPROCESSING, 8).nbytes == 0


def test_baselines_stand_in_for_a_network():
    requests = [Request("few", WHOLE, patches=True), Request("some")]
    passes = BaselinePasses("raw pixels", lists(), requests, crop=16, patch=8)
    assert not passes.dense
    assert (passes.features("some").cls == np.stack([raw_pixels(image) for image in IMAGES])).all()
    dense = passes.features("few", WHOLE).patches
    assert (dense == np.stack([patch_baseline("raw pixels", image, 3) for image in IMAGES[:2]])).all()
    with pytest.raises(LookupError, match="natively"):
        next(iter(passes.maps("some", View("native", grid=3))))


def test_what_is_shown_does_not_depend_on_the_batch():
    found = [
        NetworkPasses(Network(), PREPROCESSING, lists(), [Request("some", patches=True)], batch=batch).features("some")
        for batch in (1, 5, 64)
    ]
    for each in found[1:]:
        assert torch.allclose(torch.from_numpy(each.patches), torch.from_numpy(found[0].patches), atol=1e-6)
