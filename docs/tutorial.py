# %% [markdown]
# # From a folder of images to labels and a model
#
# Everything that the commands do is a function of `coreg_ray` too. This file runs in a notebook, cell by cell, and as a
# script: `python docs/tutorial.py DIR` leaves its folders in DIR. It takes a few minutes, and no network.

# %%
import logging
import sys
from pathlib import Path

from PIL import Image

import coreg_ray
from coreg_ray.embedded.digits import CLASS_NAMES, PROMPTS, digits

logging.basicConfig(level=logging.INFO, format="%(message)s")  # the library logs how far it is
work = Path(sys.argv[1] if len(sys.argv) == 2 else "runs/tutorial")

# %% [markdown]
# ## Images
#
# A folder of files, without a label. Here they are scans of handwritten digits; yours are wherever they are. A second
# folder has labels, a folder a class: it only scores, and you may do without one.

# %%
for split, count in (("train", 600), ("test", 200)):
    ids, pixels, numbers = digits(split)
    for name, image, number in zip(ids[:count], pixels, numbers, strict=False):
        folder = work / "pool" if split == "train" else work / "labelled" / CLASS_NAMES[number]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{name.rsplit('/', 1)[-1]}.png")

# %% [markdown]
# ## Annotate
#
# A vision-language model answers several prompts about every image; what it named is the image's candidate set. The
# embedded one knows print alone; leave `annotator` out and it is CLIP ViT-B/32. Settings are the sections of the
# configuration. A wrong one raises `coreg_ray.UserError`, with the valid ones named.

# %%
annotated = coreg_ray.annotate(
    work / "annotated",
    source={"kind": "folder", "path": work / "pool", "classes": list(CLASS_NAMES), "prompts": list(PROMPTS)},
    test={"kind": "folder", "path": work / "labelled"},
    annotator={"kind": "clip", "model": "embedded"},
    student={"resolution": 16, "width": 8, "flip": False},
)
annotated  # noqa: B018  (a notebook shows it)

# %%
figures = annotated.figures
print(f"{figures['annotation/mean_candidates']:.2f} candidate classes an image")

# %% [markdown]
# ## Train
#
# Two networks learn together from these answers. The same call again goes on where it was stopped. Six epochs show how
# it works; leave `method` out, and the schedule is fitted to the number of images.

# %%
run = coreg_ray.train(
    work / "trained",
    annotations=annotated,
    method={"epochs": 6, "warmup_epochs": 3, "batch_size": 64, "learning_rate": 0.02, "queue_size": 512},
    report={"baselines": False},
)
print(run)

# %%
for epoch in run.history:  # pandas.DataFrame(run.history) makes a table of it
    print(epoch["epoch"], epoch["phase"], f"{epoch['test/accuracy']:.3f}")

# %% [markdown]
# ## Labels
#
# Every image of the pool has a label now, and a word on how far to trust it. `table` is an Arrow table; `output` writes
# the labels for other tools as well.

# %%
labels = coreg_ray.labels(run, work / "labels.csv", format="csv")
print(labels)
print(labels.table.slice(0, 3).to_pylist())

# %% [markdown]
# ## The model
#
# It takes paths, Pillow images, bytes, arrays and tensors.

# %%
model = coreg_ray.load(work / "trained" / "model")
paths = sorted((work / "labelled").rglob("*.png"))[:5]
classes, probabilities = model.predict(paths)
for path, name, row in zip(paths, classes, probabilities, strict=True):
    print(f"{path.parent.name:8} {name:8} {row.max():.2f}")

# %% [markdown]
# ## Does it pay?
#
# Other methods on the same rows, with the same networks. `run.report` has all about one run, for people.

# %%
comparison = coreg_ray.compare(run, kinds=["coreg", "partial"], method={"epochs": 4})
print(comparison.table)
print(comparison.conclusion)
