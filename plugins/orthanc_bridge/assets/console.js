// SPDX-License-Identifier: AGPL-3.0-only
// The jobs page: every job with its state, reason and remedy, and what can be done about it.

import { ask, pictureUrl, resource, studyUrl } from "./api.js";
import {
  actions, badge, clock, dicomDate, el, personName, progressBar, reason, show,
  showProblem, stepText, timings,
} from "./job.js";
import { review } from "./review.js";
import { showDisks } from "./disks.js";
import { showFlow } from "./flow.js";

const POLL_MS = 2000;
const body = document.querySelector("#jobs > tbody");
const alertBox = document.querySelector("#alert");
const rows = new Map();
let group = "all";
let latest = null;
let timer;

class Row {
  constructor(id) {
    const cell = (name) => el("td", { className: name });
    this.id = id;
    this.cells = {
      state: cell("state"), patient: cell("patient"), model: cell("model"), step: cell("step"),
      reason: cell("reason"), times: cell("times"),
    };
    this.buttons = el("div");
    this.toggle = el("button", {
      type: "button", className: "segnode-button", "aria-expanded": "false",
      "aria-controls": `detail-${id}`, "aria-label": `Details of job ${id.slice(0, 8)}`,
    }, "Details");
    this.toggle.addEventListener("click", () => this.open(this.detail.hidden));
    this.inside = el("div", { className: "inside" });
    this.actions = el("span");
    this.actions.style.display = "contents";
    this.buttons.append(this.actions, this.toggle);
    this.main = el("tr", { id: `job-${id}` }, ...Object.values(this.cells),
      el("td", { className: "buttons" }, this.buttons));
    this.detail = el("tr", { id: `detail-${id}`, className: "detail", hidden: true },
      el("td", { colSpan: 7 }, this.inside));
  }

  show(job, steps) {
    const { state, model, step, times } = this.cells;
    this.job = job;
    show(state, [job.state, job.group], () => badge(job));
    show(model, [job.model, job.rule, job.priority], () => [
      el("p", {}, job.model || "–", job.priority === "routine" ? "" : ` · ${job.priority}`),
      el("p", { className: "segnode-soft" }, job.rule === "by hand" ? "by hand" : job.rule && `rule ${job.rule}`),
    ]);
    show(step, [job.state, job.step, job.progress, job.attempt], () => [
      progressBar(job, steps), el("p", { className: "segnode-soft" }, stepText(job, steps)),
    ]);
    show(this.cells.reason,
      [job.state, job.cause, job.remedy, Math.ceil(job.next_try_in_s ?? -1), job.facts,
        job.updated_at],
      () => reason(job));
    show(times, [job.created_at, job.updated_at], () => [
      el("p", {}, clock(job.created_at)),
      el("p", { className: "segnode-soft" }, "changed ", clock(job.updated_at)),
    ]);
    show(this.actions, [job.actions, job.state], () => actions(job, acted));
    this.label();
    if (!this.detail.hidden && this.seen !== job.updated_at) this.fill();
  }

  async label() {
    const [study, series] = await Promise.all([
      resource("studies", this.job.study_id), resource("series", this.job.series_id),
    ]);
    const patientTags = study?.PatientMainDicomTags;
    const studyTags = study?.MainDicomTags ?? {};
    const seriesTags = series?.MainDicomTags ?? {};
    const about = [dicomDate(studyTags.StudyDate), studyTags.StudyDescription];
    const what = [seriesTags.Modality, seriesTags.SeriesNumber && `series ${seriesTags.SeriesNumber}`,
      seriesTags.SeriesDescription, this.job.facts.instances && `${this.job.facts.instances} instances`];
    const joined = (parts) => parts.filter(Boolean).join(" · ");
    show(this.cells.patient, [patientTags, about, what], () => {
      if (!patientTags) return el("p", { className: "segnode-soft" }, "No longer in Orthanc");
      const name = personName(patientTags.PatientName) || "No name";
      return [
        el("p", {}, el("a", { href: studyUrl(this.job.study_id) }, name),
          ` ${patientTags.PatientID ?? ""}`),
        el("p", { className: "segnode-soft" }, joined(about)),
        el("p", { className: "segnode-soft" }, joined(what)),
      ];
    });
  }

  open(wanted) {
    this.detail.hidden = !wanted;
    this.toggle.setAttribute("aria-expanded", String(wanted));
    if (wanted) this.fill();
  }

  async fill() {
    const { updated_at: at } = this.job;
    try {
      const detail = await ask(`jobs/${this.id}`);
      const held = detail.review ? await review(detail, acted) : null;
      this.seen = at;
      show(this.inside, [detail.timings, detail.picture, at], () => [
        held,
        el("div", {},
          el("h2", {}, "Seconds by step"), timings(detail),
          el("h2", {}, "Job"), el("p", { className: "segnode-soft" }, this.id),
          el("p", { className: "segnode-soft" }, `UPS state ${detail.ups_state}`),
          detail.facts.sender && el("p", { className: "segnode-soft" }, `Sent by ${detail.facts.sender}`),
          detail.destinations.length
            ? el("p", { className: "segnode-soft" }, `Results to ${detail.destinations.join(", ")}`) : null),
        detail.picture
          ? el("a", { href: pictureUrl(detail), target: "_blank", rel: "noopener" },
            el("img", { className: "segnode-picture", src: pictureUrl(detail),
              alt: "Slices of the series with the segmentation drawn over them" }))
          : !held && el("p", { className: "segnode-soft" }, "No picture of a result yet."),
      ]);
    } catch (error) {
      complain(error);
    }
  }
}

function draw() {
  const { jobs, counts, steps } = latest;
  const wanted = new Set();
  let before = null;
  for (const job of jobs) {
    if (group !== "all" && job.group !== group) continue;
    wanted.add(job.id);
    if (!rows.has(job.id)) rows.set(job.id, new Row(job.id));
    const row = rows.get(job.id);
    // Move only what is out of place: moving a row would take the keyboard's focus from it.
    const place = before ? before.detail.nextSibling : body.firstChild;
    if (place !== row.main) body.insertBefore(row.main, place);
    if (row.main.nextSibling !== row.detail) row.main.after(row.detail);
    row.show(job, steps);
    before = row;
  }
  for (const [id, row] of rows) {
    if (wanted.has(id)) continue;
    row.main.remove();
    row.detail.remove();
    rows.delete(id);
  }
  const empty = document.querySelector("#empty");
  empty.hidden = wanted.size > 0;
  empty.textContent = group === "all" ? "Nothing has arrived yet." : `No ${group} jobs.`;
  for (const button of document.querySelectorAll(".filter")) {
    const name = button.dataset.group;
    const count = name === "all" ? counts.stuck + counts.running + counts.done : counts[name];
    button.setAttribute("aria-pressed", String(name === group));
    button.classList.toggle("some", count > 0);
    button.querySelector("b").textContent = count;
  }
}

function complain(error) {
  showProblem(alertBox, error);
}

/** What a button's call came to stays until the next one; a failed poll only until it succeeds. */
function acted(error) {
  showProblem(document.querySelector("#refusal"), error);
  refresh();
}

async function refresh() {
  clearTimeout(timer);
  if (!document.hidden) {
    try {
      // The node filters: what is stuck may be older than the newest jobs that one answer lists.
      latest = await ask(group === "all" ? "jobs" : `jobs?state=${group}`);
      draw();
      complain(null);
      document.querySelector("#fresh").textContent = `as of ${new Date().toLocaleTimeString()}`;
    } catch (error) {
      complain(error);
    }
  }
  clearTimeout(timer);
  timer = setTimeout(refresh, POLL_MS);
}

/** ``#stuck`` chooses a filter; ``#job-ID`` opens one job. */
function follow() {
  const name = location.hash.slice(1);
  const linked = /^job-([0-9a-f]{32})$/.exec(name);
  group = ["stuck", "running", "done"].includes(name) ? name : "all";
  if (latest) draw();
  refresh();
  if (linked && rows.has(linked[1])) {
    const row = rows.get(linked[1]);
    row.open(true);
    row.main.scrollIntoView({ block: "center" });
  }
}

for (const button of document.querySelectorAll(".filter")) {
  button.addEventListener("click", () => {
    history.replaceState(null, "", `#${button.dataset.group}`);
    follow();
  });
}
window.addEventListener("hashchange", follow);
document.addEventListener("visibilitychange", () => document.hidden || refresh());
follow();
refresh().then(follow);
showDisks();
showFlow((error) => showProblem(document.querySelector("#refusal"), error));
