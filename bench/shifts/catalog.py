"""The table of shifts: the metadata of each, known before its data is opened. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Family = Literal["imagenet", "cifar", "digits"]


@dataclass(frozen=True, slots=True)
class ShiftRow:
    """One shift. `path` is "module:function" of its loader, which is called with this row and a `Reading`.

    `family` selects the published options of methods. `storage` is the storage format of corrupted images, `profile`
    the severity table that they were made with. `places` are folders below the data root, of which the first that
    exists is read; likewise `clean` (the same images unshifted) and `train` (source images), both optional.
    `bench data fetch` downloads from `hub`, a repository of the hub with the scored split `hub_test`, or from `doi`, a
    Zenodo record with checksums. `origin` says where to get data that has neither. `gigabytes` is the download size.
    `protocol` is the only protocol that applies to the shift ("": any). `options_from` names the shift whose file of
    options it shares ("": its own). `train_images` is the published number of train images, for estimates without data.
    """

    name: str
    path: str
    summary: str
    size: str
    licence: str
    citation: str
    default_stock: str
    family: Family = "imagenet"
    default_model: str = ""
    storage: str = "uint8"
    profile: str = "auto"
    places: tuple[str, ...] = ()
    clean: tuple[str, ...] = ()
    train: tuple[str, ...] = ()
    hub: str = ""
    hub_test: str = "test"
    doi: str = ""
    origin: str = ""
    protocol: str = ""
    gigabytes: float = 0.0
    options_from: str = ""
    train_images: int = 0

    @property
    def repository(self) -> tuple[str, str | None]:
        """The hub repository and its configuration; ("", None) for a shift that is not on the hub."""
        kind, _, argument = self.name.partition(":")
        if kind == "hf":
            repo, _, config = argument.partition(":")
            return repo, config or None
        return (TASKS.get(argument, ""), None) if kind in ("mini-vtab", "mini-vtab-c") else (self.hub, None)

    @property
    def how_to_get(self) -> str:
        """The command that fetches the data, or the place to get it from if there is no command."""
        if self.name == "digits-c":
            return "comes with scikit-learn"
        if self.doi or self.repository[0]:
            return f"bench data fetch {self.name}"
        return self.origin or "your own files"


_HENDRYCKS = (
    "D. Hendrycks, T. Dietterich. Benchmarking Neural Network Robustness to Common Corruptions and Perturbations. "
    "ICLR 2019. arXiv:1903.12261"
)
_BAR = (
    "E. Mintun, A. Kirillov, S. Xie. On Interaction Between Augmentations and Corruptions in Natural Corruption "
    "Robustness. NeurIPS 2021. arXiv:2102.11273"
)
_LAION = (
    "F. Li, T. Klein, W. Brendel, R. Geirhos, R. S. Zimmermann. LAION-C: An Out-of-Distribution Benchmark for "
    "Web-Scale Vision Models. ICML 2025. arXiv:2506.16950"
)
_TERMS = "ImageNet terms of access (non-commercial research)"
_RESNET = "timm:resnet50.a1_in1k"
_MAE = "mae-vit-base-patch16"
_VAL = ("imagenet/val", "ImageNet/val", "imagenet/validation")
_TRAIN = ("imagenet/train", "ImageNet/train")

_FASHION = ("fashion-mnist", "FashionMNIST/raw", "/usr/share/datasets/fashion-mnist")

# The first row of a family states all fields; the others state what differs from it.

_IMAGENET_C = ShiftRow(
    "imagenet-c",
    "bench.shifts.imagenet:published",
    "ImageNet validation images under 15 corruptions at 5 severities, the published JPEG files, never resized",
    "50,000 images x 75 conditions, about 75 GB",
    "CC BY 4.0",
    _HENDRYCKS,
    _MAE,
    default_model=_RESNET,
    storage="jpeg85",
    profile="imagenet224",
    places=("imagenet-c", "ImageNet-C"),
    clean=_VAL,
    train=_TRAIN,
    doi="10.5281/zenodo.2235448",
    gigabytes=75,
    options_from="imagenet-c",
    train_images=1_281_167,
)
_IMAGENET_C_GEN = ShiftRow(
    "imagenet-c-gen",
    "bench.shifts.imagenet:generated",
    "ImageNet validation images of your own copy under our corruptions; never compared with imagenet-c",
    "50,000 images, 6.7 GB as JPEG",
    _TERMS,
    "O. Russakovsky et al. ImageNet Large Scale Visual Recognition Challenge. IJCV 2015. arXiv:1409.0575",
    _MAE,
    default_model=_RESNET,
    profile="imagenet224",
    places=_VAL,
    clean=_VAL,
    train=_TRAIN,
    origin="image-net.org (ILSVRC2012, free account), as one folder for each synset",
    gigabytes=6.7,
    options_from="imagenet-c",
    train_images=1_281_167,
)
_IMAGENET_R = ShiftRow(
    "imagenet-r",
    "bench.shifts.imagenet:natural",
    "Renditions (art, cartoons, toys, …) of 200 ImageNet classes; the model's other classes are masked",
    "30,000 images, 2.2 GB",
    "MIT",
    "D. Hendrycks et al. The Many Faces of Robustness. ICCV 2021. arXiv:2006.16241",
    _MAE,
    default_model=_RESNET,
    places=("imagenet-r",),
    train=_TRAIN,
    hub="axiong/imagenet-r",
    gigabytes=2.2,
)

_IMAGENET_ROWS = (
    _IMAGENET_C,
    _IMAGENET_C_GEN,
    replace(
        _IMAGENET_C,
        name="imagenet-c-5k",
        path="bench.shifts.imagenet:subset",
        summary=(
            "5,000 images of imagenet-c: those in imagenet-c-5k.txt (such as robustbench's list), else a seeded draw"
        ),
        size="5,000 images x 75 conditions of imagenet-c",
    ),
    replace(
        _IMAGENET_C,
        name="imagenet-c-bar",
        path="bench.shifts.imagenet:bar",
        summary="ImageNet validation images under 10 corruptions unlike those of ImageNet-C, the published JPEG files",
        size="50,000 images x 50 conditions, about 50 GB",
        licence="CC BY-NC 4.0",
        citation=_BAR,
        places=("imagenet-c-bar", "ImageNet-C-Bar"),
        doi="",
        origin="github.com/facebookresearch/augmentation-corruption (imagenet_c_bar)",
        gigabytes=50,
    ),
    replace(
        _IMAGENET_C_GEN,
        name="imagenet-c-bar-gen",
        path="bench.shifts.imagenet:bar_generated",
        summary="ImageNet validation images of your own copy under our version of the ImageNet-C-bar corruptions",
        citation=_BAR,
    ),
    replace(
        _IMAGENET_C,
        name="laion-c",
        path="bench.shifts.imagenet:laion",
        summary=(
            "Six strong distortions in 5 levels, 16 superclasses scored by mean member probability; the published files"
        ),
        size="about 2.7 GB",
        citation=_LAION,
        storage="jpeg100",
        places=("laion-c", "LAION-C"),
        clean=(),
        doi="10.5281/zenodo.14051887",
        gigabytes=2.7,
    ),
    replace(
        _IMAGENET_C_GEN,
        name="laion-c-gen",
        path="bench.shifts.imagenet:laion_generated",
        summary=(
            "ImageNet validation images of the 16 superclasses under our version of the LAION-C distortions; tiles are "
            "the pictures in laion-c-tiles in the data root, else procedural ones"
        ),
        size="14,250 images of ImageNet val",
        citation=_LAION,
    ),
    replace(
        _IMAGENET_C_GEN,
        name="ccc",
        path="bench.shifts.imagenet:ccc",
        summary=(
            "Continuously changing corruptions: two on an image, their severities walking; made from your copy, "
            "without the published calibration, flips, random crops, JPEG storage and shorter lists of corruptions"
        ),
        size="50,000 images of ImageNet val",
        citation=(
            "O. Press, S. Schneider, M. Kümmerer, M. Bethge. RDumb: A simple approach that questions our progress in "
            "continual test-time adaptation. NeurIPS 2023. arXiv:2306.05401"
        ),
        protocol="ccc_uncalibrated",
    ),
    _IMAGENET_R,
    replace(
        _IMAGENET_R,
        name="imagenet-a",
        summary="Natural images of 200 ImageNet classes that fool a ResNet-50; the model's other classes are masked",
        size="7,500 images, 0.7 GB",
        citation="D. Hendrycks et al. Natural Adversarial Examples. CVPR 2021. arXiv:1907.07174",
        places=("imagenet-a",),
        hub="barkermrl/imagenet-a",
        hub_test="train",
        gigabytes=0.7,
    ),
    replace(
        _IMAGENET_R,
        name="imagenet-v2",
        summary="ImageNet's validation set collected anew (matched frequency)",
        size="10,000 images, 1.3 GB",
        citation="B. Recht et al. Do ImageNet Classifiers Generalize to ImageNet? ICML 2019. arXiv:1902.10811",
        places=("imagenet-v2", "imagenetv2-matched-frequency-format-val"),
        hub="vaishaal/ImageNetV2",
        gigabytes=1.3,
    ),
    replace(
        _IMAGENET_R,
        name="imagenet-sketch",
        summary="Black-and-white sketches of the 1000 ImageNet classes",
        size="50,889 images, 7 GB",
        citation=(
            "H. Wang et al. Learning Robust Global Representations by Penalizing Local Predictive Power. NeurIPS 2019. "
            "arXiv:1905.13549"
        ),
        places=("imagenet-sketch", "sketch"),
        hub="songweig/imagenet_sketch",
        hub_test="train",
        gigabytes=7,
    ),
    replace(
        _IMAGENET_R,
        name="imagenet-hr",
        summary="High-resolution images of the 1000 ImageNet classes, five each, checked by hand",
        size="5,000 images, 7 GB",
        citation=(
            "A. Fuller, D. G. Kyrollos, Y. Yassin, J. R. Green. LookHere: Vision Transformers with Directed Attention "
            "Generalize and Extrapolate. NeurIPS 2024. arXiv:2405.13985"
        ),
        places=("imagenet-hr",),
        hub="antofuller/ImageNet-HR",
        gigabytes=7,
    ),
    replace(
        _IMAGENET_C_GEN,
        name="imagenet-real",
        path="bench.shifts.imagenet:real",
        summary=(
            "ImageNet validation images with reassessed labels: any of an image's labels is right, those without left "
            "out"
        ),
        size="46,837 images of ImageNet val",
        licence="Apache-2.0 (labels), " + _TERMS,
        citation="L. Beyer et al. Are we done with ImageNet? 2020. arXiv:2006.07159",
        profile="auto",
        clean=(),
        options_from="",
        train_images=0,
    ),
    ShiftRow(
        "tiny-imagenet-c",
        "bench.shifts.imagenet:tiny",
        "Tiny-ImageNet validation images (64 px, 200 classes) under 15 corruptions, the published JPEG files",
        "10,000 images x 75 conditions, 2 GB",
        "CC BY 4.0",
        _HENDRYCKS,
        "tiny-imagenet.safetensors",
        storage="jpeg85",
        profile="tiny64",
        places=("tiny-imagenet-c", "Tiny-ImageNet-C"),
        clean=("tiny-imagenet-200/val",),
        train=("tiny-imagenet-200/train",),
        doi="10.5281/zenodo.2536630",
        gigabytes=2,
    ),
)

_CIFAR10_C = ShiftRow(
    "cifar10-c",
    "bench.shifts.cifar:published",
    "CIFAR-10 test images (32 px) under 15 corruptions at 5 severities, the published .npy files",
    "10,000 images x 75 conditions, 2.9 GB",
    "CC BY 4.0",
    _HENDRYCKS,
    "cifar10.safetensors",
    family="cifar",
    profile="cifar32",
    places=("cifar10-c", "CIFAR-10-C"),
    clean=("cifar10",),
    train=("cifar10",),
    doi="10.5281/zenodo.2535967",
    gigabytes=2.9,
)
_CIFAR10_C_GEN = replace(
    _CIFAR10_C,
    name="cifar10-c-gen",
    path="bench.shifts.cifar:generated",
    summary="CIFAR-10 of your own copy or the hub under our corruptions; never compared with cifar10-c",
    size="60,000 images, 0.15 GB",
    licence="no licence stated; research use",
    citation="A. Krizhevsky. Learning Multiple Layers of Features from Tiny Images. 2009",
    places=("cifar10",),
    hub="uoft-cs/cifar10",
    doi="",
    gigabytes=0.15,
)

_SMALL_ROWS = (
    _CIFAR10_C,
    replace(
        _CIFAR10_C,
        name="cifar100-c",
        summary="CIFAR-100 test images (32 px) under 15 corruptions at 5 severities, the published .npy files",
        default_stock="cifar100.safetensors",
        places=("cifar100-c", "CIFAR-100-C"),
        clean=("cifar100",),
        train=("cifar100",),
        doi="10.5281/zenodo.3555552",
    ),
    _CIFAR10_C_GEN,
    replace(
        _CIFAR10_C_GEN,
        name="cifar100-c-gen",
        summary="CIFAR-100 of your own copy or the hub under our corruptions; never compared with cifar100-c",
        default_stock="cifar100.safetensors",
        places=("cifar100",),
        clean=("cifar100",),
        train=("cifar100",),
        hub="uoft-cs/cifar100",
    ),
    ShiftRow(
        "fashion-c",
        "bench.shifts.fashion:load",
        "Fashion-MNIST at 32 px under 12 corruptions",
        "70,000 images, 0.03 GB",
        "MIT",
        "H. Xiao, K. Rasul, R. Vollgraf. Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning "
        "Algorithms. 2017. arXiv:1708.07747",
        "fashion.safetensors",
        family="digits",
        profile="digits32",
        places=_FASHION,
        clean=_FASHION,
        train=_FASHION,
        hub="zalando-datasets/fashion_mnist",
        gigabytes=0.03,
    ),
    ShiftRow(
        "digits-c",
        "bench.shifts.digits:load",
        "Handwritten digits at 32 px under 12 corruptions; ships with scikit-learn, no download",
        "1797 images",
        "CC BY 4.0",
        "E. Alpaydin, C. Kaynak. Optical Recognition of Handwritten Digits. UCI 1998. doi:10.24432/C50P49",
        "digits",
        family="digits",
        profile="digits32",
    ),
)

_MINI_VTAB = ShiftRow(
    "mini-vtab",
    "bench.shifts.vtab:load",
    "One of 21 small transfer tasks, as in mini-vtab:TASK, without corruptions",
    "1,000 training images a task",
    "each task has its own",
    "X. Zhai et al. A Large-scale Study of Representation Learning with the Visual Task Adaptation Benchmark. 2019. "
    "arXiv:1910.04867",
    _MAE,
    places=("mini-vtab",),
)

_TASK_ROWS = (
    _MINI_VTAB,
    replace(
        _MINI_VTAB,
        name="mini-vtab-c",
        path="bench.shifts.vtab:corrupted",
        summary="One of 21 small transfer tasks, as in mini-vtab-c:TASK, its test images under our 15 corruptions",
        profile="imagenet224",
    ),
    ShiftRow(
        "folder",
        "bench.shifts.folder_or_hub:folder",
        "folder:PATH, images of your own in one folder a class (PATH/train and PATH/test if it has them) and corrupted",
        "yours",
        "yours",
        "none",
        _MAE,
        default_model=_RESNET,
    ),
    ShiftRow(
        "hf",
        "bench.shifts.folder_or_hub:hub",
        "hf:REPO or hf:REPO:CONFIG, any set with images and labels on the hub, as it is and corrupted",
        "see its page",
        "see its page",
        "see its page",
        _MAE,
        default_model=_RESNET,
    ),
)

TASKS: dict[str, str] = {
    "caltech101": "clip-benchmark/wds_vtab-caltech101",
    "cifar10": "clip-benchmark/wds_cifar10",
    "cifar100": "clip-benchmark/wds_vtab-cifar100",
    "clevr_count": "clip-benchmark/wds_vtab-clevr_count_all",
    "clevr_distance": "clip-benchmark/wds_vtab-clevr_closest_object_distance",
    "dmlab": "clip-benchmark/wds_vtab-dmlab",
    "dsprites_orientation": "clip-benchmark/wds_vtab-dsprites_label_orientation",
    "dsprites_x": "clip-benchmark/wds_vtab-dsprites_label_x_position",
    "dsprites_y": "clip-benchmark/wds_vtab-dsprites_label_y_position",
    "dtd": "clip-benchmark/wds_vtab-dtd",
    "eurosat": "clip-benchmark/wds_vtab-eurosat",
    "flowers102": "clip-benchmark/wds_vtab-flowers",
    "kitti": "clip-benchmark/wds_vtab-kitti_closest_vehicle_distance",
    "patch_camelyon": "clip-benchmark/wds_vtab-pcam",
    "pets": "clip-benchmark/wds_vtab-pets",
    "resisc45": "clip-benchmark/wds_vtab-resisc45",
    "retinopathy": "clip-benchmark/wds_vtab-diabetic_retinopathy",
    "smallnorb_azimuth": "clip-benchmark/wds_vtab-smallnorb_label_azimuth",
    "smallnorb_elevation": "clip-benchmark/wds_vtab-smallnorb_label_elevation",
    "sun397": "clip-benchmark/wds_sun397",
    "svhn": "clip-benchmark/wds_vtab-svhn",
}
"""The hub repository of each task."""

SHIFTS: dict[str, ShiftRow] = {row.name: row for row in (*_IMAGENET_ROWS, *_SMALL_ROWS, *_TASK_ROWS)}
"""All shifts by name; `folder`, `hf` and the `mini-vtab`s take an argument after a colon."""

OPEN = ("folder", "hf", "mini-vtab", "mini-vtab-c")
