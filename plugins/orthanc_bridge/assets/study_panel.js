// SPDX-License-Identifier: AGPL-3.0-only
// In the classic Orthanc Explorer (jQuery Mobile): a panel on a study's page, and a link to the
// jobs page in every header. Loaded by `import()` from /plugins/explorer.js.

import { ask, consoleUrl, pictureUrl, resource, tell } from "./api.js";
import {
  actions, badge, clock, el, progressBar, reason, show, showProblem, stepText, timings,
} from "./job.js";

const POLL_MS = 2000;
const IDLE_POLL_MS = 10000;

/** Orthanc's id of the study whose page is open, or null. */
function openStudy() {
  const match = /^#study\?(?:.*&)?uuid=([0-9a-f-]+)/.exec(location.hash);
  return match ? match[1] : null;
}

/** The panel of one study. Another study gets another panel, so that none can show the other's. */
class StudyPanel {
  constructor(studyId) {
    this.studyId = studyId;
    this.alert = el("div", { className: "segnode-alert", role: "alert" });
    this.refusal = el("div", { className: "segnode-alert", role: "alert" });
    this.jobs = el("div");
    this.form = el("form");
    this.status = el("span", { className: "segnode-soft", role: "status" });
    this.root = el("section", { className: "segnode segnode-panel", "aria-label": "segnode" },
      el("h2", {}, "segnode", el("a", { href: consoleUrl(), rel: "external" }, "All jobs")),
      this.alert, this.refusal, this.jobs, this.form);
    this.cards = new Map();
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      event.stopImmediatePropagation(); // jQuery Mobile would send the form itself
      this.process();
    });
    const place = document.querySelector("#study .ui-block-b > div");
    place?.prepend(this.root);
    this.refresh();
  }

  close() {
    this.closed = true;
    clearTimeout(this.timer);
    this.root.remove();
  }

  async refresh() {
    clearTimeout(this.timer);
    let pause = IDLE_POLL_MS;
    try {
      if (!document.hidden) {
        if (!this.model) await this.fillForm();
        const answer = await ask(`jobs?study=${this.studyId}`);
        showProblem(this.alert, null);
        for (const job of answer.jobs) await this.showJob(job, answer.steps);
        this.loaded = true;
        if (!answer.jobs.length) {
          show(this.jobs, "none", () =>
            el("p", { className: "segnode-soft" }, "No job of this study yet."));
        }
        if (answer.jobs.some((job) => job.group === "running" || job.state === "waiting")) {
          pause = POLL_MS;
        }
      }
    } catch (error) {
      showProblem(this.alert, error);
    }
    clearTimeout(this.timer);
    if (!this.closed) this.timer = setTimeout(() => this.refresh(), pause);
  }

  async showJob(job, steps) {
    let card = this.cards.get(job.id);
    if (!card) {
      if (!this.cards.size) this.jobs.replaceChildren();
      delete this.jobs.dataset.shown;
      card = {
        text: el("div"), progress: el("div"), reason: el("div"),
        buttons: el("div", { className: "segnode-actions" }), times: el("div"), picture: el("div"),
      };
      const left = el("div", {}, card.text, card.progress, card.reason, card.times, card.buttons);
      const article = el("article", { className: "segnode-card" }, left, card.picture);
      if (this.loaded) this.jobs.prepend(article);
      else this.jobs.append(article); // the newest comes first
      this.cards.set(job.id, card);
    }
    const series = (await resource("series", job.series_id))?.MainDicomTags ?? {};
    const about = [series.Modality, series.SeriesNumber && `series ${series.SeriesNumber}`,
      series.SeriesDescription].filter(Boolean).join(" · ");
    show(card.text, [job.state, job.group, job.model, about], () =>
      el("div", { className: "segnode-head" }, badge(job), el("strong", {}, job.model || "no model"),
        el("span", { className: "segnode-soft" }, about)));
    show(card.progress, [job.state, job.step, job.progress, job.attempt], () =>
      [progressBar(job, steps), el("p", { className: "segnode-soft" }, stepText(job, steps))]);
    show(card.reason,
      [job.state, job.cause, job.remedy, Math.ceil(job.next_try_in_s ?? -1), job.facts,
        job.updated_at],
      () => reason(job));
    show(card.buttons, [job.actions, job.state], () =>
      actions(job, (error) => { showProblem(this.refusal, error); this.refresh(); }));
    if (card.seen !== job.updated_at) {
      const detail = await ask(`jobs/${job.id}`);
      card.seen = job.updated_at;
      show(card.times, [detail.timings, job.updated_at], () =>
        el("details", { open: card.times.firstChild?.open ?? false },
          el("summary", { className: "segnode-soft" }, "Times; last change ", clock(job.updated_at)),
          timings(detail)));
      show(card.picture, [detail.picture, detail.review], () => {
        if (detail.picture) {
          return el("a", { href: pictureUrl(job), target: "_blank", rel: "noopener" },
            el("img", { className: "segnode-picture", src: pictureUrl(job),
              alt: "Slices of the series with the segmentation drawn over them" }));
        }
        return detail.review &&
          el("a", { href: consoleUrl(`#job-${job.id}`), rel: "external" }, "Look at the held images");
      });
    }
  }

  async fillForm() {
    const { models, destinations } = await ask("models");
    if (!models.length) {
      this.form.replaceChildren("The node has no model.");
      return;
    }
    this.model = el("select", { name: "model" }, ...models.map((model) =>
      el("option", { value: model.name }, `${model.name} ${model.version} (${model.modality})`)));
    this.destination = el("select", { name: "destination" }, ...destinations.map((name) =>
      el("option", { value: name }, name === "sender" ? "back to the sender" : name)));
    this.button = el("button", { type: "submit", className: "segnode-button segnode-main" }, "Process");
    const labels = [el("label", {}, "Process with model ", this.model)];
    if (destinations.length > 1) labels.push(el("label", {}, "send results ", this.destination));
    this.form.replaceChildren(...labels, this.button, this.status);
  }

  async process() {
    const model = this.model.value;
    this.button.disabled = true;
    this.status.textContent = "";
    try {
      const { jobs, already } = await tell(`studies/${this.studyId}/process`,
        { model, destination: this.destination.value });
      const made = jobs.length - already.length;
      this.status.textContent = made
        ? `${made === 1 ? "1 new job" : `${made} new jobs`}, see above.`
        : `${model} has its job of these instances: see above. Nothing was started.`;
      showProblem(this.refusal, null);
      this.refresh();
    } catch (error) {
      showProblem(this.refusal, error);
    } finally {
      this.button.disabled = false;
    }
  }
}

/** Put a button beside "Plugins" in every header, whether jQuery Mobile has drawn it yet or not. */
function addHeaderLinks() {
  for (const last of document.querySelectorAll('[data-role="header"] .ui-btn-left a:last-of-type')) {
    const link = last.cloneNode(true);
    link.href = consoleUrl();
    link.rel = "external"; // a page of its own, not one of jQuery Mobile's
    (link.querySelector(".ui-btn-text") ?? link).textContent = "segnode jobs";
    for (const part of [last, ...last.querySelectorAll(".ui-corner-right")]) {
      part.classList.remove("ui-corner-right", "ui-controlgroup-last");
    }
    last.after(link);
  }
}

function start() {
  const sheet = new URL("job.css", import.meta.url).href;
  document.head.append(el("link", { rel: "stylesheet", href: sheet }));
  addHeaderLinks();
  let panel = null;
  const follow = () => {
    const studyId = openStudy();
    if (panel?.studyId === studyId && panel.root.isConnected) return;
    panel?.close();
    panel = studyId ? new StudyPanel(studyId) : null;
  };
  // From one study to another jQuery Mobile changes the address, and shows no other page.
  window.addEventListener("hashchange", follow);
  window.jQuery(document).bind("pageshow", follow);
  document.addEventListener("visibilitychange", () => document.hidden || panel?.refresh());
  follow();
}

if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
else start();
