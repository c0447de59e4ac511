"""`report.html`: what a run did and how far to trust it, in one file that needs no network; and `review.csv`."""

from __future__ import annotations

import logging
import shlex
from importlib import resources
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

import coreg_ray
from coreg_ray.report import sections
from coreg_ray.report.data import Looked, Run, read_run
from coreg_ray.report.gallery import Gallery, label_gallery, pool_galleries, typical_gallery, without_empty
from coreg_ray.report.review import review_csv, write_review
from coreg_ray.report.usable import usable_section
from coreg_ray.report.voters import voter_section
from coreg_ray.run.folder import REPORT, RunFolder
from coreg_ray.run.records import Overlap
from coreg_ray.run.trust import trust_in_words
from coreg_ray.run.uris import without_credentials
from coreg_ray.training.sample import Samples

log = logging.getLogger(__name__)

HERE = resources.files(__package__)
FEW_CLASSES = 20  # that the eye finds without a search
_SCRIPTS = ("tables.js", "figures.js", "find.js")


def write_report(folder: RunFolder, samples: Samples | None = None) -> None:
    """Write `report.html` and `review.csv` into the run folder from whatever lies there; nothing is required.

    Labels that a person has written into `review.csv` stay: `write_review` says how.

    Args:
        samples: of this run, where they are read already.
    """
    run = read_run(folder, samples)
    folder.write(REPORT, render(run, folder.name))
    if run.config and run.config.report.review and (looked := askable(run)):
        probs, sample = looked.logits.div(run.temperature).softmax(dim=2), looked.sample
        most = run.config.report.review
        fresh = review_csv(sample.ids, probs, looked.features, sample.annotated, run.class_names, most)
        write_review(folder, fresh)
    log.info("report: %s/%s", folder.path, REPORT)


def askable(run: Run) -> Looked | None:
    """The images whose labels would teach something: trained on, and not labelled by a person yet."""
    if not run.pool or not run.config:
        return None
    sample = run.pool.sample
    learned = ~sample.held_out(run.config.source.holdout) & sample.candidates.any(dim=1).numpy()
    return run.pool.where(learned & ~sample.trusted.numpy())


def render(run: Run, name: str) -> str:
    """The page as text; all values are escaped, figures are our own SVG."""
    return template("page.html").render(
        name=name,
        version=coreg_ray.__version__,
        metrics=run.metrics,
        method=sections.method_title(run),
        facts=sections.facts(run),
        noun=run.noun,
        only_votes=run.only_votes,
        comparison=(rows := sections.comparison(run)),
        verdict=sections.verdict(rows),
        overlap=Overlap.of(run.metrics).words(),
        trust=trust_in_words(run.metrics),
        annotation=sections.annotation_figures(run),
        voters=voter_section(run.voters, run.class_names),
        usable=usable_section(run.usable),
        training=sections.training_figures(run),
        test=sections.test_tables(run),
        calibration=sections.calibration(run),
        galleries=galleries(run),
        looked=(len(run.pool.sample), run.pool.sample.total) if run.pool else None,
        classes=len(run.class_names),
        few_classes=FEW_CLASSES,
        review=review_command(run),
        settings=yaml.safe_dump(without_credentials(run.config.settings()), sort_keys=False, allow_unicode=True)
        if run.config
        else "",
    )


def review_command(run: Run) -> str:
    """The command that shows what `review.csv` lists; empty where no such file is written."""
    if not run.config or not run.config.report.review or askable(run) is None:
        return ""
    return f"coreg-ray review {shlex.quote(str(without_credentials(run.config.output)))}"


def template(name: str) -> jinja2.Template:
    """A page of this folder, with the style and the script that all pages have."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"number": number, "seconds": seconds, "tail": tail}
    ours = {file: (HERE / file).read_text(encoding="utf-8") for file in ("page.css", *_SCRIPTS)}
    script = "".join(f"{{\n{ours[file]}}}\n" for file in _SCRIPTS)  # each with names of its own
    environment.globals |= {"style": Markup(ours["page.css"]), "script": Markup(script)}
    return environment.from_string((HERE / name).read_text(encoding="utf-8"))


def number(value: Any) -> str:
    """Numbers as people read them: shares with three digits, counts with thousands, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def seconds(value: float | None) -> str:
    """Seconds without false precision."""
    return "" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def tail(name: str, length: int = 32) -> str:
    """The end of an image id, which tells it from others."""
    return name if len(name) <= length else "..." + name[3 - length :]


def galleries(run: Run) -> list[Gallery]:
    """The pictures; none with `report.pictures` 0."""
    most = run.config.report.pictures if run.config else 0
    if not most:
        return []
    shown: list[Gallery] = []
    if run.pool:
        shown += pool_galleries(run.pool.sample, run.pool.judged, run.class_names, most)
    if run.test:
        shown.append(label_gallery(run.test.sample, run.test.judged, run.class_names, most))
    if run.pool:
        shown.append(typical_gallery(run.pool.sample, run.pool.judged, run.class_names, most))
    return without_empty(shown)
