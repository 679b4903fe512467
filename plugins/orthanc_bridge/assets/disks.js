// SPDX-License-Identifier: AGPL-3.0-only
// How full the node's disks are, and when they will be: a meter each, and an alert when one is.

import { ask } from "./api.js";
import { el, show } from "./job.js";

const POLL_MS = 60000;
const GIB = 2 ** 30;
const SOON_DAYS = 7;

const gib = (bytes) => `${(bytes / GIB).toFixed(1)} GiB`;

function forecast(disk) {
  if (disk.days_left === null) return "";
  const days = Math.floor(disk.days_left);
  return days < 1 ? ", full within a day" : `, full in about ${days} ${days === 1 ? "day" : "days"}`;
}

function meter(disk) {
  const used = disk.total_bytes - disk.free_bytes;
  const allowed = disk.total_bytes - disk.keep_free_bytes;
  const full = disk.days_left === 0;
  const text = `${gib(disk.free_bytes)} free${full ? "" : forecast(disk)}`;
  return el("span", {
    className: disk.days_left !== null && disk.days_left < SOON_DAYS ? "segnode-problem" : "",
    title: `of ${gib(disk.total_bytes)}; ${gib(disk.keep_free_bytes)} are kept free`,
  }, el("meter", {
    min: 0, max: disk.total_bytes, high: Math.max(0, allowed), value: used, "aria-label": "Disk",
  }), text);
}

/** Ask now, and once a minute while the page is seen. */
export async function showDisks() {
  if (!document.hidden) {
    try {
      const { disks } = await ask("storage");
      const full = disks.some((disk) => disk.days_left === 0);
      show(document.querySelector("#disks"), disks, () => disks.map(meter));
      show(document.querySelector("#full"), full, () => full ? [
        "A disk is full: senders are answered with out of resources. Free space, or keep less "
        + "([retention]); segnode doctor names the disk.",
      ] : []);
    } catch {
      // What is wrong with the node stands above the jobs already.
    }
  }
  setTimeout(showDisks, POLL_MS);
}
