"""A real OHIF in a headless Chromium, driven as a reader drives it: open, double-click, scroll.

What is photographed is the viewer's canvas itself, without the text that lies over it.
"""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from playwright.sync_api import BrowserContext, Page, sync_playwright
from playwright.sync_api import TimeoutError as BrowserTimeout

REPOSITORY = Path(__file__).resolve().parents[2]
HOME = REPOSITORY / ".viewer"
LOCK = Path(__file__).with_name("ohif.lock")
#: Newest stable first, then one older.
VERSIONS = tuple(line.split()[0] for line in LOCK.read_text().splitlines())

WEBGL_WITHOUT_A_GPU = (
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
)
QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync")
PATIENCE_MS = 240_000
FRAMES_BETWEEN_SHOTS = 12
MOST_SHOTS = 20

Shot = dict[str, Any]

_STACK_IS_THERE = """() =>
    (window.cornerstone?.getRenderingEngines?.()[0]?.getViewports?.()[0]?.getImageIds?.() ?? [])
        .length > 1"""
_SEGMENTATION_IS_THERE = """() => {
    const state = window.cornerstoneTools?.segmentation?.state;
    const viewport = window.cornerstone.getRenderingEngines()[0]?.getViewports()[0];
    return viewport && state?.getSegmentationRepresentations(viewport.id).length > 0;
}"""
_LABELS = """() => Object.fromEntries(
    Object.entries(window.cornerstoneTools.segmentation.state.getSegmentations()[0].segments)
        .map(([number, segment]) => [number, segment.label]))"""
_SCROLL = """async position => {
    const viewport = window.cornerstone.getRenderingEngines()[0].getViewports()[0];
    const distances = viewport.getImageIds().map(id => {
        const plane = window.cornerstone.metaData.get('imagePlaneModule', id);
        return Math.hypot(...plane.imagePositionPatient.map((value, i) => value - position[i]));
    });
    await viewport.setImageIdIndex(distances.indexOf(Math.min(...distances)));
    viewport.render();
}"""
_HIDE = """() => {
    const viewport = window.cornerstone.getRenderingEngines()[0].getViewports()[0];
    const { config, state } = window.cornerstoneTools.segmentation;
    for (const { segmentationId } of state.getSegmentations())
        config.visibility.setSegmentationRepresentationVisibility(
            viewport.id, { segmentationId }, false);
    viewport.render();
}"""
# Frames, not seconds: they are as slow as the machine is.
_FRAMES = """async frames => {
    for (let i = 0; i < frames; i++) await new Promise(requestAnimationFrame);
}"""
_SHOOT = """async frames => {
    for (let i = 0; i < frames; i++) await new Promise(requestAnimationFrame);
    const viewport = window.cornerstone.getRenderingEngines()[0].getViewports()[0];
    const canvas = viewport.getCanvas();
    const world = point => Array.from(viewport.canvasToWorld(point));
    return {
        picture: canvas.toDataURL('image/png').split(',')[1],
        origin: world([0, 0]), right: world([100, 0]), below: world([0, 100]),
        width: canvas.clientWidth,
    };
}"""


@dataclass(frozen=True)
class Photograph:
    """One slice on the viewer's canvas.

    Attributes
    ----------
    with_overlay, without_overlay
        Shape (height, width, 3), RGB.
    points
        Shape (height, width, 3): the patient's millimetres (LPS) at the middle of each pixel, as
        the viewer's own ``canvasToWorld`` has them.
    """

    with_overlay: npt.NDArray[np.uint8]
    without_overlay: npt.NDArray[np.uint8]
    points: npt.NDArray[np.float64]


def require_viewer() -> str:
    """Chromium's path; skips the calling test where it or OHIF is missing."""
    chromium = shutil.which("chromium")
    there = [(HOME / version / "index.html").is_file() for version in VERSIONS]
    if chromium and all(there):
        return chromium
    reason = "no Chromium or no OHIF in .viewer/: run `make test-viewer`"
    pytest.skip(reason)


@contextmanager
def chromium(executable: str, *, width: int = 900, height: int = 640) -> Iterator[BrowserContext]:
    """One headless browser that renders WebGL in software, for pages of this size."""
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", *WEBGL_WITHOUT_A_GPU, *QUIET]
        browser = playwright.chromium.launch(
            executable_path=executable, args=arguments, timeout=PATIENCE_MS
        )
        try:
            context = browser.new_context(viewport={"width": width, "height": height})
            context.add_init_script(
                "localStorage.setItem('shownTours', JSON.stringify(['basicViewerTour']))"
            )
            yield context
        finally:
            browser.close()


class Reader:
    """A person before one page of OHIF; a context manager."""

    def __init__(self, context: BrowserContext, origin: str) -> None:
        self._origin = origin
        self.page: Page = context.new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.errors: list[str] = []
        self.page.on("console", lambda said: said.type == "error" and self._note(said.text))
        self.page.on("pageerror", lambda error: self._note(str(error)))

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.page.close()

    def open_study(self, study_instance_uid: str, protocol: str | None = None) -> None:
        """Open a study and wait until its first series is on the screen."""
        protocol = f"&hangingprotocolid={protocol}" if protocol else ""
        self.page.goto(f"{self._origin}/viewer?StudyInstanceUIDs={study_instance_uid}{protocol}")
        self.page.wait_for_function(_STACK_IS_THERE)

    def open_segmentation(self, series_description: str) -> dict[int, str]:
        """Double-click a SEG's thumbnail; number and label of its segments as the viewer has them.

        AssertionError, with what the browser's console said, when the viewer does not load it.
        """
        self._double_click(series_description)
        try:
            self.page.wait_for_function(_SEGMENTATION_IS_THERE)
        except BrowserTimeout:
            raise AssertionError(f"OHIF loads no segmentation; it says {self.errors}") from None
        return {int(number): label for number, label in self.page.evaluate(_LABELS).items()}

    def photograph(self, positions: Sequence[Sequence[float]]) -> list[Photograph]:
        """Scroll to the slices at some ImagePositionPatient, with the overlay and then without.

        The overlay is hidden at the end. A viewer that never paints gives two equal pictures.
        """
        shots = [self._scrolled_to(position) for position in positions]
        self.page.evaluate(_HIDE)
        self._wait_for_another_picture_than(shots[-1])
        hidden = [self._scrolled_to(position) for position in positions]
        return [
            Photograph(_picture(shown), _picture(without), _points(shown))
            for shown, without in zip(shots, hidden, strict=True)
        ]

    def scroll_to(self, position: Sequence[float]) -> None:
        """Show the slice at an ImagePositionPatient."""
        self._scrolled_to(position)

    def open_document(self, series_description: str) -> None:
        """Double-click a report's thumbnail; returns when its text is on the screen."""
        self._double_click(series_description)
        self.page.get_by_text("Findings").first.wait_for()

    def page_picture(self) -> Image.Image:
        """The whole page, with the viewer's own text, when it no longer changes."""
        picture = self.page.screenshot()
        for _ in range(MOST_SHOTS):
            self.page.evaluate(_FRAMES, 5 * FRAMES_BETWEEN_SHOTS)
            before, picture = picture, self.page.screenshot()
            if picture == before:
                break
        return Image.open(io.BytesIO(picture))

    def _double_click(self, series_description: str) -> None:
        # As an event: the page may be too busy with a volume to hold still for a mouse.
        self.page.get_by_text(series_description, exact=True).first.dispatch_event("dblclick")

    def _scrolled_to(self, position: Sequence[float]) -> Shot:
        self.page.evaluate(_SCROLL, [float(value) for value in position])
        return self._settled()

    def _settled(self) -> Shot:
        """What the canvas shows when it no longer changes."""
        shot = self._shoot()
        for _ in range(MOST_SHOTS):
            before, shot = shot, self._shoot()
            if shot == before:
                break
        return shot

    def _wait_for_another_picture_than(self, shot: Shot) -> None:
        for _ in range(MOST_SHOTS):
            if self._shoot() != shot:
                break

    def _shoot(self) -> Shot:
        shot: Shot = self.page.evaluate(_SHOOT, FRAMES_BETWEEN_SHOTS)
        return shot

    def _note(self, text: str) -> None:
        self.errors.append(text[:300])


def _picture(shot: Shot) -> npt.NDArray[np.uint8]:
    data = base64.b64decode(shot["picture"])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def _points(shot: Shot) -> npt.NDArray[np.float64]:
    """LPS millimetres at the middle of each pixel of the canvas."""
    height, width = _picture(shot).shape[:2]
    css_pixels = shot["width"] / width
    origin, right, below = (np.array(shot[key], float) for key in ("origin", "right", "below"))
    down, across = (np.mgrid[0:height, 0:width] + 0.5)[..., np.newaxis] * css_pixels / 100
    points: npt.NDArray[np.float64] = origin + across * (right - origin) + down * (below - origin)
    return points
