"""What every file of the data sets is called, how long it is, what its hash is, and where it is downloaded from."""

from typing import NamedTuple


class Variant(NamedTuple):
    """Another content of a file that is accepted.

    Attributes:
      hash: as `File.hash`.
      note: how it differs; reports print it.
    """

    hash: str
    note: str


class File(NamedTuple):
    """A file that a data set is read from, or the archive it is downloaded in.

    Attributes:
      name: the name in the folder of the data set.
      size: bytes of the content.
      hash: `md5:`, `sha1:` or `sha256:` and the hexadecimal digest of the content.
      address: where the file is downloaded from; None if only its archive is, or if nothing is.
      archive: the zip or tar archive that has the file.
      member: the path in the archive.
      variants: other contents that are accepted.
    """

    name: str
    size: int
    hash: str
    address: str | None = None
    archive: "File | None" = None
    member: str = ""
    variants: tuple[Variant, ...] = ()


class Source(NamedTuple):
    """The files of a data set, and notes that reports print whenever they use it."""

    files: tuple[File, ...]
    notes: tuple[str, ...] = ()


_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_FASHION_MNIST = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_CIFAR_10 = File(
    "cifar-10-python.tar.gz",
    170_498_071,
    "md5:c58f30108f718f92721af3b95e74349a",
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
)
_CIFAR_100 = File(
    "cifar-100-python.tar.gz",
    169_001_437,
    "md5:eb9058c3a382ffc7106e4002c42a8d85",
    "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
)
_PTB = File(
    "simple-examples.tgz",
    34_869_662,
    "md5:30177ea32e27c525793142b6bf2c8e2d",
    "http://www.fit.vutbr.cz/~imikolov/rnnlm/simple-examples.tgz",
)
_WIKITEXT_2 = File(
    "wikitext-2-v1.zip",
    4_475_746,
    "sha256:92675f1d63015c1c8b51f1656a52d5bdbc33aafa60cc47a218a66e7ee817488c",
    "https://wikitext.smerity.com/wikitext-2-v1.zip",
)
_TEXT8 = File(
    "text8.zip",
    31_344_016,
    "sha1:6c70299b93b7e1f927b42cd8f6ac1a31547c7a2e",
    "http://mattmahoney.net/dc/text8.zip",
)
_ENWIK8 = File(
    "enwik8.zip",
    36_445_475,
    "sha256:547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
    "http://mattmahoney.net/dc/enwik8.zip",
)


def _plain(address: str, *files: tuple[str, int, str]) -> tuple[File, ...]:
    return tuple(File(name, size, digest, address + name) for name, size, digest in files)


def _members(archive: File, folder: str, *files: tuple[str, int, str]) -> tuple[File, ...]:
    return tuple(
        File(name, size, digest, archive=archive, member=f"{folder}{name}", variants=_VARIANTS.get(name, ()))
        for name, size, digest in files
    )


_VARIANTS = {
    "wiki.train.tokens": (
        Variant(
            "sha256:d791461751d969ea6aac3d17e5998bf31223fc7d9e16d0640c73fc4725b0781b",
            "wiki.train.tokens has the official content with some articles in another order",
        ),
    ),
}

DATASETS: dict[str, Source] = {
    "mnist": Source(
        _plain(
            _MNIST,
            (
                "train-images-idx3-ubyte.gz",
                9_912_422,
                "sha256:440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            ),
            (
                "train-labels-idx1-ubyte.gz",
                28_881,
                "sha256:3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            ),
            (
                "t10k-images-idx3-ubyte.gz",
                1_648_877,
                "sha256:8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            ),
            (
                "t10k-labels-idx1-ubyte.gz",
                4_542,
                "sha256:f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            ),
        )
    ),
    "fashion_mnist": Source(
        _plain(
            _FASHION_MNIST,
            (
                "train-images-idx3-ubyte.gz",
                26_421_880,
                "sha256:3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            ),
            (
                "train-labels-idx1-ubyte.gz",
                29_515,
                "sha256:a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            ),
            (
                "t10k-images-idx3-ubyte.gz",
                4_422_102,
                "sha256:346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            ),
            (
                "t10k-labels-idx1-ubyte.gz",
                5_148,
                "sha256:67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            ),
        )
    ),
    "cifar-10": Source(
        _members(
            _CIFAR_10,
            "cifar-10-batches-py/",
            ("data_batch_1", 31_035_704, "md5:c99cafc152244af753f735de768cd75f"),
            ("data_batch_2", 31_035_320, "md5:d4bba439e000b95fd0a9bffe97cbabec"),
            ("data_batch_3", 31_035_999, "md5:54ebc095f3ab1f0389bbae665268c751"),
            ("data_batch_4", 31_035_696, "md5:634d18415352ddfa80567beed471001a"),
            ("data_batch_5", 31_035_623, "md5:482c414d41f54cd18b22e5b47cb7c3cb"),
            ("test_batch", 31_035_526, "md5:40351d587109b95175f43aff81a1287e"),
        )
    ),
    "cifar-100": Source(
        _members(
            _CIFAR_100,
            "cifar-100-python/",
            ("train", 155_249_918, "md5:16019d7e3df5f24257cddd939b257f8d"),
            ("test", 31_049_420, "md5:f0ef6b0ae62326f3e7ffdfab6717acfc"),
        )
    ),
    "cifar10_jpeg": Source(
        (
            File(
                "CIFAR-10-images.tar.xz",
                18_568_708,
                "sha256:31f19f85c0f07fa85836858beb2e812673b59fd9b49ae33295d2ecd8b6297fda",
            ),
        ),
        notes=(
            "cifar10-jpeg: the images of CIFAR-10 after lossy JPEG compression (about 30 dB), not the official pixels; "
            "not comparable with published numbers",
        ),
    ),
    "ptb": Source(
        _members(
            _PTB,
            "simple-examples/data/",
            (
                "ptb.train.txt",
                5_101_618,
                "sha256:fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
            ),
            ("ptb.valid.txt", 399_782, "sha256:c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2"),
            ("ptb.test.txt", 449_945, "sha256:dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0"),
        )
    ),
    "ptb_char": Source(
        _members(
            _PTB,
            "simple-examples/data/",
            (
                "ptb.char.train.txt",
                10_034_964,
                "sha256:e313d91425e06c4f0a8fb6e881dcce0c291f2a0e9f4dda54833069b122f91da9",
            ),
            (
                "ptb.char.valid.txt",
                786_084,
                "sha256:21661f63ec355085879458b6524644d4add5573541b4be14fb52ab2e2e995eb8",
            ),
            ("ptb.char.test.txt", 884_846, "sha256:1ef5607ac3c463b16e38bfe7900dd3bfc91de5a96e0f21e7eab5188b465b8ebe"),
        )
    ),
    "wikitext-2": Source(
        _members(
            _WIKITEXT_2,
            "wikitext-2/",
            ("wiki.train.tokens", 10_797_148, "sha1:863f29c46ef9d167fff4940ec821195882fe29d1"),
            (
                "wiki.valid.tokens",
                1_121_681,
                "sha256:f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
            ),
            (
                "wiki.test.tokens",
                1_256_449,
                "sha256:d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
            ),
        )
    ),
    "text8": Source(_members(_TEXT8, "", ("text8", 100_000_000, "sha1:0dc3edebc970dcc96137e7deda4d9995af9d93de"))),
    "enwik8": Source(_members(_ENWIK8, "", ("enwik8", 100_000_000, "sha1:57b8363b814821dc9d47aa4d41f58733519076b2"))),
}
