"""Names of folders and files for class names and image ids, which may hold anything.

What is made here is a valid name on Linux, macOS and Windows alike, and no two are the same where case and Unicode form
do not count.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from hashlib import blake2b

from coreg_ray.ids import row_number

_LONGEST = 100  # bytes of a name as it was given; some file systems take 255, in which an ending has to fit
_UNSAFE = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]')
_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9\u00b9\u00b2\u00b3])(\..*)?", re.IGNORECASE)


def safe(name: str) -> str:
    """A text as the name of a file or folder: what systems do not take becomes `_`; never empty, hidden or `..`."""
    plain = _UNSAFE.sub("_", unicodedata.normalize("NFC", name))
    plain = plain.encode("utf-8", "replace")[:_LONGEST].decode("utf-8", "ignore")
    plain = re.sub(r"^[. ]+", "_", plain)
    plain = re.sub(r"[. ]+$", "_", plain)
    return f"_{plain}" if not plain or _RESERVED.fullmatch(plain) else plain


def folder_names(class_names: Sequence[str]) -> list[str]:
    """A folder name for each class, in their order: the class's own where it is safe and free.

    Of classes that would share a folder all but one have 8 digits of a hash of their name at its end; one whose name
    need not be changed comes first.
    """
    taken: set[str] = set()
    made = dict.fromkeys(class_names, "")
    for name in sorted(class_names, key=lambda entry: safe(entry) != entry):  # those that stay as they are come first
        folder, marks = safe(name), 0
        while folder.casefold() in taken:
            digest = blake2b(f"{marks}{name}".encode("utf-8", "replace"), digest_size=4).hexdigest()
            folder, marks = f"{safe(name)}-{digest}", marks + 1
        taken.add(folder.casefold())
        made[name] = folder
    return [made[name] for name in class_names]


def file_name(image_id: str, ending: str) -> str:
    """A file name for an image: the end of its id for people, and its row number, which no other image of the pool has.

    Args:
        ending: with its dot.
    """
    stem = image_id.rsplit("/", 1)[-1].rsplit("\\", 1)[-1]
    stem = stem.rpartition(".")[0] or stem
    return f"{safe(stem)}-{row_number(image_id):016x}{ending}"
