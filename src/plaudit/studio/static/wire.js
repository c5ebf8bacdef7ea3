// The HTTP API, with what a page sends to show that it is one of ours.
let csrf = document.querySelector('meta[name="plaudit-csrf"]').content;

// Of another log-in, which this page has just begun.
export function renew(token) {
  csrf = token;
}

// What the server refuses: what is wrong, where, and how to mend it.
export class Refused extends Error {
  // fault: {what, where, fix}, or none where it was not the studio that answered.
  constructor(status, fault) {
    super(fault ? [fault.where, fault.what, fault.fix].filter(Boolean).join(": ") : String(status));
    this.status = status;
    this.fault = fault;
  }
}

// Refused where the server says no; TypeError where it could not be reached.
export async function call(method, path, body) {
  const answer = await ask(method, path, body);
  return answer.json();
}

// Saves what is answered as a file, under the name that comes with it or this one; its headers.
export async function saved(path, otherwise = "records") {
  const answer = await ask("GET", path);
  const name = answer.headers.get("content-disposition")?.match(/filename="([^"]+)"/)?.[1] ?? otherwise;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await answer.blob());
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
  return answer.headers;
}

// body: a file is sent as it stands, everything else as JSON.
async function ask(method, path, body) {
  const headers = { "x-plaudit-csrf": csrf }, file = body instanceof Blob;
  if (body !== undefined) headers["content-type"] = file ? "application/octet-stream" : "application/json";
  const answer = await fetch(`/api/v1${path}`, {
    method, headers, body: body === undefined || file ? body : JSON.stringify(body), credentials: "same-origin",
  });
  if (answer.status === 401 && !location.pathname.startsWith("/log-in")) location.assign("/log-in");
  if (!answer.ok) {
    const fault = await answer.json().catch(() => null);
    throw new Refused(answer.status, fault?.what ? fault : null);
  }
  return answer;
}

// A random id, also where the page is not served over TLS.
export function identity() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// A form that is sent by `send(fields)`, and says what is wrong with it.
export function form(id, send) {
  const found = document.getElementById(id);
  if (found === null) return;
  const fault = found.querySelector(".fault"), done = found.querySelector(".done");
  found.addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = found.querySelector("button:not([type=button])"), focused = document.activeElement === button;
    button.disabled = true;
    if (fault) fault.hidden = true;
    if (done) done.hidden = true;
    try {
      const said = await send(new FormData(found), found);
      if (done && typeof said === "string") {
        done.textContent = said;
        done.hidden = false;
      }
    } catch (error) {
      if (!fault) throw error;
      fault.textContent = error.message;
      fault.hidden = false;
    } finally {
      button.disabled = false;
      if (focused && document.activeElement === document.body) button.focus(); // what is disabled loses it
    }
  });
}

const out = document.getElementById("log-out");
if (out) {
  out.addEventListener("click", async () => {
    await call("POST", "/log-out");
    location.assign("/log-in");
  });
}
