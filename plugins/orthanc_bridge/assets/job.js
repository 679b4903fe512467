// SPDX-License-Identifier: AGPL-3.0-only
// How a job looks, on the jobs page and on a study's page. All data goes in as text, never as HTML.

import { tell } from "./api.js";

/** An element with properties and children; strings become text nodes. */
export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  // jQuery Mobile in Orthanc Explorer would make its own controls of them.
  if (tag === "button" || tag === "select") element.dataset.role = "none";
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role" || name === "for") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Replace an element's children only when what they show has changed: no flicker, focus stays. */
export function show(element, key, make) {
  const text = JSON.stringify(key);
  if (element.dataset.shown === text) return;
  element.dataset.shown = text;
  element.replaceChildren(...[make()].flat().filter(Boolean));
}

const TONES = {
  queued: "going", running: "going", waiting: "waiting", confirmed: "good", rejected: "bad",
  incomplete: "bad", quarantined: "bad", failed: "bad", canceled: "quiet", superseded: "quiet",
};

/** A series that no rule wants needs nobody's attention. */
const tone = (job) => (job.group === "done" && job.state === "rejected" ? "quiet" : TONES[job.state]);

export const badge = (job) =>
  el("span", { className: `segnode-badge segnode-${tone(job)}` }, job.state);

/** One segment for each step: finished, in hand (filled as far as it has got), still to come. */
export function progressBar(job, steps) {
  const over = job.state === "confirmed";
  const done = over ? steps.length : job.step_number - 1;
  const bar = el("div", {
    className: `segnode-steps segnode-${tone(job)}`,
    role: "progressbar",
    "aria-valuemin": "0",
    "aria-valuemax": String(steps.length),
    "aria-valuenow": String(done),
    "aria-valuetext": stepText(job, steps),
  });
  steps.forEach((step, index) => {
    const segment = el("i", { title: `${index + 1}. ${step.name}: ${step.does}` });
    const inHand = index === done && job.state === "running";
    const part = index < done ? 1 : inHand ? job.progress : 0;
    segment.style.setProperty("--part", `${Math.round(part * 100)}%`);
    if (index === done) segment.className = inHand ? "segnode-in-hand" : "segnode-here";
    bar.append(segment);
  });
  return bar;
}

export function stepText(job, steps) {
  if (job.state === "confirmed") return "all steps done";
  const percent = job.state === "running" && job.progress > 0
    ? ` · ${Math.round(job.progress * 100)} %` : "";
  const tries = job.attempt > 1 ? ` · try ${job.attempt}` : "";
  return `${job.step_number}/${steps.length} ${job.step}${percent}${tries}`;
}

/** Why it stands where it stands, and what a person can do. */
export function reason(job) {
  const lines = [];
  if (job.cause) lines.push(el("p", { className: "segnode-cause" }, job.cause));
  if (job.next_try_in_s !== null) {
    lines.push(el("p", {}, `Next try ${inWords(job.next_try_in_s)}.`));
  }
  if (job.remedy) lines.push(el("p", { className: "segnode-remedy" }, `→ ${job.remedy}`));
  const completeness = job.facts.completeness;
  if (completeness) {
    const source = job.facts.asked_source ? ` (${job.facts.asked_source})` : "";
    lines.push(el("p", { className: "segnode-soft" }, `Series ${completeness.says}${source}.`));
  }
  for (const [name, series] of Object.entries(job.facts.replaces ?? {})) {
    const count = Object.values(series).flat().length;
    lines.push(el("p", { className: "segnode-soft" },
      `Replaces an earlier result: ${name} is told to reject ${count} object(s).`));
  }
  const released = job.facts.images_released;
  if (released) {
    const images = released === 1 ? "1 image" : `${released} images`;
    lines.push(el("p", { className: "segnode-soft" }, `A person released ${images} with text blanked.`));
  }
  if (job.facts.explained) {
    lines.push(el("p", { className: "segnode-soft" },
      `Told why: ${job.facts.explained.join(", ")}.`));
  }
  for (const remark of [...(job.facts.left_out ?? []), ...(job.facts.remarks ?? [])]) {
    lines.push(el("p", { className: "segnode-soft" }, remark));
  }
  lines.push(deliveries(job));
  return lines.filter(Boolean);
}

const DELIVERY_TONES = {
  waiting: "waiting", accepted: "going", confirmed: "good", refused: "bad",
  replaced: "quiet",
};

/** A line for each destination: what it has taken, what it has proven, why it waits or refused. */
function deliveries(job) {
  if (!job.deliveries.length) return null;
  const table = el("table", { className: "segnode-deliveries" },
    el("caption", {}, "Destinations"));
  for (const one of job.deliveries) {
    const tone = one.given_up ? "bad" : DELIVERY_TONES[one.state];
    table.append(el("tr", {},
      el("th", { scope: "row" }, one.destination),
      el("td", {}, el("span", { className: `segnode-badge segnode-${tone}` }, one.state)),
      el("td", {}, `${one.results.join(", ")} · ${one.taken} of ${one.objects}`),
      el("td", {}, ...ofDelivery(one, job).map((line) => el("p", {}, line)))));
  }
  return table;
}

function ofDelivery(one, job) {
  const lines = [];
  if (one.proof) {
    lines.push(`Kept: ${one.proof}, ${new Date(one.confirmed_at).toLocaleString()}`);
  }
  if (one.fallback) {
    lines.push(`It refused the Segmentation (${one.fallback}): Secondary Captures instead.`);
  }
  lines.push(...one.warnings);
  // A job with one destination says its cause, next try and remedy above.
  if (job.deliveries.length > 1) {
    if (one.cause) lines.push(one.cause);
    if (one.next_try_in_s !== null && one.cause) lines.push(`Next try ${inWords(one.next_try_in_s)}.`);
    if (one.remedy) lines.push(`→ ${one.remedy}`);
  }
  return lines;
}

function inWords(seconds) {
  if (seconds < 1) return "now";
  if (seconds < 90) return `in ${Math.ceil(seconds)} s`;
  return `in ${Math.ceil(seconds / 60)} min`;
}

const LABELS = { retry: "Retry", cancel: "Cancel" };

/** Buttons for what can be done now; ``after(error)`` is told when the call has been answered. */
export function actions(job, after) {
  return job.actions.map((action) => {
    const label = action === "retry" && job.state === "waiting" ? "Try now" : LABELS[action];
    const button = el("button", { type: "button", className: `segnode-button segnode-${action}` }, label);
    button.setAttribute("aria-label", `${label} job ${job.id.slice(0, 8)}`);
    button.addEventListener("click", async () => {
      if (action === "cancel" && !confirm("Cancel this job? What was received stays in Orthanc.")) {
        return;
      }
      button.disabled = true;
      try {
        await tell(`jobs/${job.id}/${action}`);
        after(null);
      } catch (error) {
        after(error);
      } finally {
        button.disabled = false;
      }
    });
    return button;
  });
}

/** What went wrong and what to do, or nothing. */
export const showProblem = (box, error) =>
  show(box, error && [error.message, error.remedy], () =>
    error && [
      el("p", {}, error.message),
      el("p", { className: "segnode-remedy" }, error.remedy ? `→ ${error.remedy}` : ""),
    ]);

/** Seconds of each step, as a table. */
export function timings(detail) {
  const rows = detail.timings.map((one) =>
    el("tr", {},
      el("th", { scope: "row" }, one.step),
      el("td", {}, `${one.seconds.toFixed(1)} s`),
      el("td", {}, one.tries > 1 ? `${one.tries} tries` : "")));
  return el("table", { className: "segnode-timings" }, el("tbody", {}, ...rows));
}

/** Local time; the date only when it is not today. */
export function clock(iso) {
  const at = new Date(iso);
  const today = at.toDateString() === new Date().toDateString();
  const time = at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
  return el("time", { dateTime: iso, title: iso }, today ? time : `${at.toLocaleDateString()} ${time}`);
}

/** ``Family^Given=家^名`` as a person writes it. */
export const personName = (name) =>
  (name ?? "").split("=").map((group) => group.replace(/\^+/g, " ").trim()).filter(Boolean).join(" · ");

/** ``20260131`` as ``2026-01-31``. */
export const dicomDate = (date) => (date ?? "").replace(/^(\d{4})(\d{2})(\d{2})$/, "$1-$2-$3");
