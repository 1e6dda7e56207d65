"""The papers' names of layers -> nodes. Layers are taken after their ReLU and their pooling.

VU Table 2.1 lists a conv2_3 of VGG-16, which that network does not have (its second block has two
convolutions); torchvision's GoogLeNet has no local response normalisation, so `pool1-norm1` and
`conv2-norm2` are the pooled maps that have the sizes of the table.
"""


def _vgg(network: str, convolutions: tuple[int, ...]) -> dict[tuple[str, str], str]:
    """Return the nodes of conv1_1 .. conv5_4, pool1 .. pool5, fc6 and fc7 of a VGG.

    A convolution has two modules, a pooling one.
    """
    names, module = {}, 0
    for block, count in enumerate(convolutions, start=1):
        for layer in range(1, count + 1):
            names[network, f"conv{block}_{layer}"] = f"features.{module + 1}"
            module += 2
        names[network, f"pool{block}"] = f"features.{module}"
        module += 1
    return names | {(network, "fc6"): "classifier.1", (network, "fc7"): "classifier.4"}


def _alexnet(network: str) -> dict[tuple[str, str], str]:
    modules = {"conv1": 1, "pool1": 2, "conv2": 4, "pool2": 5, "conv3": 7, "conv4": 9, "conv5": 11}
    names = {(network, name): f"features.{module}" for name, module in modules.items()}
    return names | {
        (network, "pool5"): "features.12",
        (network, "fc6"): "classifier.2",
        (network, "fc7"): "classifier.5",
    }


_BLOCKS = ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")

ALIASES: dict[tuple[str, str], str] = {
    **_vgg("vgg16", (2, 2, 3, 3, 3)),
    **_vgg("vgg19", (2, 2, 4, 4, 4)),
    **_alexnet("alexnet"),
    **_alexnet("alexnet_fcn"),
    ("googlenet", "pool1-norm1"): "maxpool1",
    ("googlenet", "conv2-norm2"): "maxpool2",
    **{("googlenet", f"inception {block}"): f"inception{block}" for block in _BLOCKS},
    **{(f"resnet{depth}", "res5c"): "layer4" for depth in (50, 101, 152)},
    **{(f"resnet{depth}", "pool5"): "avgpool" for depth in (50, 101, 152)},
    **{(f"squeezenet1_{minor}", "ga"): "classifier.3" for minor in (0, 1)},
    ("mobilenet_v2", "ga"): "adaptive_avg_pool2d",
    **{(f"mobilenet_v3_{size}", "ga"): "avgpool" for size in ("small", "large")},
    **{(f"vit_{size}", "tokens"): "encoder" for size in ("b_16", "b_32", "l_16", "l_32", "h_14")},
}
"""(network, the papers' layer name) -> the family's node. `ga` is the network's global pooling, and
`tokens` are the patch tokens of the last layer of a vision transformer."""
