// SPDX-License-Identifier: AGPL-3.0-only
// Calls to the node's console (through the bridge) and to Orthanc's own REST interface.

const SEGNODE = new URL(".", import.meta.url); // …/segnode/
const ORTHANC = new URL("..", SEGNODE);

/** A call that was not answered as hoped: what is wrong, and what to do. */
export class CallFailed extends Error {
  constructor(message, remedy) {
    super(message);
    this.remedy = remedy;
  }
}

async function call(url, options) {
  let response;
  try {
    response = await fetch(url, { credentials: "same-origin", ...options });
  } catch {
    throw new CallFailed("Orthanc does not answer.", "Check the network, and that Orthanc is up.");
  }
  const answer = await response.json().catch(() => ({}));
  if (response.ok) return answer;
  throw new CallFailed(
    answer.message || `The call failed (HTTP ${response.status}).`,
    answer.remedy || "Reload the page.",
  );
}

/** GET from the node's console. */
export const ask = (path) => call(new URL(`api/${path}`, SEGNODE));

/** POST to the node's console; the header proves that it comes from a page of this origin. */
export const tell = (path, body) =>
  call(new URL(`api/${path}`, SEGNODE), {
    method: "POST",
    headers: { "X-Segnode-Console": "1", "Content-Type": "application/json" },
    body: JSON.stringify(body ?? {}),
  });

export const pictureUrl = (job) =>
  new URL(`api/jobs/${job.id}/overlay.png?${encodeURIComponent(job.updated_at)}`, SEGNODE).href;

/** One frame of an image that is held, as it would leave; both count from 1. */
export const heldPictureUrl = (job, image, frame) =>
  new URL(`api/jobs/${job.id}/review/${image}-${frame}.png`, SEGNODE).href;

export const consoleUrl = (fragment = "") => new URL(`index.html${fragment}`, SEGNODE).href;

export const studyUrl = (studyId) =>
  new URL(`app/explorer.html#study?uuid=${encodeURIComponent(studyId)}`, ORTHANC).href;

const remembered = new Map();

/** A study's or series' main tags from Orthanc, asked once; null when Orthanc has it no more. */
export function resource(level, id) {
  const path = `${level}/${encodeURIComponent(id)}`;
  if (!remembered.has(path)) {
    const found = fetch(new URL(path, ORTHANC), { credentials: "same-origin" }).then(
      (response) => (response.ok ? response.json() : null),
      () => {
        remembered.delete(path); // Orthanc was away: ask again next time
        return null;
      },
    );
    remembered.set(path, found);
  }
  return remembered.get(path);
}
