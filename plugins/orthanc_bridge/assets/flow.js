// SPDX-License-Identifier: AGPL-3.0-only
// Queues and destinations: what each has to do, and a button that stops it for a while or lets it go.

import { ask, tell } from "./api.js";
import { clock, el, show } from "./job.js";

const POLL_MS = 5000;
const box = document.querySelector("#flow");
let timer;

function line(kind, one, told) {
  const paused = one.paused_since !== null;
  const wanted = paused ? "resume" : "pause";
  const label = paused ? "Resume" : "Pause";
  const button = el("button", {
    type: "button", className: "segnode-button", "aria-label": `${label} ${kind} ${one.name}`,
  }, label);
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      draw(await tell(`flow/${kind}/${encodeURIComponent(one.name)}/${wanted}`), told);
      told(null);
    } catch (error) {
      button.disabled = false;
      told(error);
    }
  });
  const does = kind === "queue"
    ? `${one.steps.join(", ")} · ${one.waiting} waiting, ${one.running} running`
    : "results are sent there";
  return el("tr", {},
    el("th", { scope: "row" }, `${kind} ${one.name}`),
    el("td", { className: "segnode-soft" }, does),
    el("td", {}, el("span", { className: `segnode-badge segnode-${paused ? "waiting" : "good"}` },
      paused ? "paused" : "goes"), ...(paused ? [" since ", clock(one.paused_since)] : [])),
    el("td", {}, button));
}

function draw(flow, told) {
  const { queues, destinations } = flow;
  const paused = [...queues, ...destinations].filter((one) => one.paused_since !== null);
  show(box.querySelector("summary > span"), paused, () => el("span", {
    className: `segnode-badge segnode-${paused.length ? "waiting" : "quiet"}`,
  }, paused.length ? `paused by a person: ${paused.map((one) => one.name).join(", ")}` : "all go"));
  show(box.querySelector("tbody"), flow, () => [
    ...queues.map((one) => line("queue", one, told)),
    ...destinations.map((one) => line("destination", one, told)),
  ]);
}

/** Ask now, and every few seconds while the page is seen; ``told(error)`` hears of each button. */
export async function showFlow(told) {
  clearTimeout(timer);
  if (!document.hidden) {
    try {
      draw(await ask("flow"), told);
    } catch {
      // What is wrong with the node stands above the jobs already.
    }
  }
  timer = setTimeout(showFlow, POLL_MS, told);
}
