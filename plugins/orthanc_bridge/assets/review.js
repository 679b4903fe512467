// SPDX-License-Identifier: AGPL-3.0-only
// Images that are held for their pixels: as they would leave, what would be blanked, and by which rule.

import { ask, heldPictureUrl, tell } from "./api.js";
import { el } from "./job.js";

/** The held images of a job, and the button that releases them; ``after(error)`` is told. */
export async function review(job, after) {
  const held = await ask(`jobs/${job.id}/review`);
  return el("section", { className: "segnode-review" },
    el("h2", {}, held.images.length === 1 ? "1 held image" : `${held.images.length} held images`,
      " as it would leave, outlined where blanked"),
    verdict(job, held, after),
    el("div", { className: "segnode-held" },
      ...held.images.flatMap((image, index) => pictures(job, image, index + 1))));
}

function verdict(job, held, after) {
  const stuck = held.images.filter((image) => image.problem).length;
  if (stuck) {
    return el("p", { className: "segnode-remedy" },
      `Not to be released: ${stuck} of ${held.images.length} would still be held.`);
  }
  if (!held.can_release) return el("p", { className: "segnode-soft" }, "Released as shown.");
  const button = el("button", { type: "button", className: "segnode-button segnode-main" },
    "Release as shown");
  button.addEventListener("click", async () => {
    if (!confirm("Does nothing in these pictures identify the patient? They go on as shown.")) return;
    button.disabled = true;
    try {
      await tell(`jobs/${job.id}/release`, { review: held.digest });
      after(null);
    } catch (error) {
      after(error);
    } finally {
      button.disabled = false;
    }
  });
  return el("p", {},
    "OCR overlooks handwriting and faint text: look at every picture in full size. ", button);
}

function pictures(job, image, number) {
  const frames = Array.from({ length: image.frames }, (_, index) => index + 1);
  return frames.map((frame) => {
    const url = heldPictureUrl(job, number, frame);
    const name = image.frames > 1 ? `Image ${number}, frame ${frame}` : `Image ${number}`;
    return el("figure", {},
      el("a", { href: url, target: "_blank", rel: "noopener" },
        el("img", { className: "segnode-picture", src: url, loading: "lazy",
          alt: `${name} as it would leave` })),
      el("figcaption", {},
        el("strong", {}, name),
        image.problem ? el("p", { className: "segnode-problem" }, image.problem) : null,
        image.problem !== image.reason ? el("p", { className: "segnode-soft" }, image.reason) : null,
        image.regions.length
          ? el("ol", {}, ...image.regions.map(rule))
          : el("p", { className: "segnode-soft" }, "No text was found: nothing would be blanked.")));
  });
}

const rule = ({ left, top, right, bottom, rule: text }) =>
  el("li", {}, text,
    el("span", { className: "segnode-soft" }, ` ${right - left} × ${bottom - top} at ${left}, ${top}`));
