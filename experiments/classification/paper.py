"""Table 2 of the paper."""

from experiments.common.methods import MethodName

METHODS: tuple[MethodName, ...] = ("BP", "BP-Adam", "SeqIL", "SeqIL-MQ", "SeqIL-Adam")
SEEDS = 5

# Mean and standard deviation of the best test accuracy in %, by net, data set and
# measure.
PAPER: dict[tuple[str, str, str], dict[str, tuple[float, float]]] = {
    key: dict(zip(METHODS, values, strict=True))
    for key, values in {
        ("mlp", "svhn_cropped", "top1"): (
            (84.40, 0.12),
            (84.08, 0.13),
            (82.19, 0.70),
            (84.51, 0.17),
            (84.13, 0.15),
        ),
        ("conv", "svhn_cropped", "top1"): (
            (87.82, 0.67),
            (89.02, 0.19),
            (81.55, 0.59),
            (88.67, 0.18),
            (82.76, 0.87),
        ),
        ("mlp", "cifar10", "top1"): (
            (56.55, 0.08),
            (56.15, 0.21),
            (54.24, 0.18),
            (57.70, 0.21),
            (56.21, 0.20),
        ),
        ("conv", "cifar10", "top1"): (
            (67.76, 0.43),
            (67.51, 0.45),
            (50.67, 0.76),
            (67.50, 0.19),
            (59.72, 0.48),
        ),
        ("conv", "tiny_imagenet", "top1"): (
            (23.14, 0.42),
            (25.61, 0.22),
            (13.88, 0.73),
            (23.91, 0.31),
            (18.22, 0.29),
        ),
        ("conv", "tiny_imagenet", "top5"): (
            (47.05, 0.46),
            (50.04, 0.41),
            (33.42, 1.16),
            (47.53, 0.48),
            (39.58, 0.46),
        ),
    }.items()
}
