// The server's HTTP API: plain requests, and streams of server-sent events.
// URLs are relative to the page's, so that a path prefix in front of both changes nothing.

const KEY = "trimtab.key";

/** Why a request has no answer, in words for a person. `status` is 0 where the server did not answer at all. */
export class ApiFailure extends Error {
  /** @param {{status?: number, code?: string | null, param?: string | null, message: string, retryAfter?: number | null}} facts */
  constructor({ status = 0, code = null, param = null, message, retryAfter = null }) {
    super(message);
    this.status = status;
    this.code = code;
    this.param = param;
    this.retryAfter = retryAfter;
  }
}

/**
 * @typedef {object} ChatAnswer
 * @property {{role: string, content: string, reasoning: string}} message
 * @property {any} usage
 * @property {any} alignment
 * @property {string | null} finish
 * @property {Headers} headers
 * @property {number} milliseconds
 * @property {number | null} firstTokenMs
 */

export class Api {
  /** @param {string} [base] URL that the paths of the API are relative to */
  constructor(base = document.baseURI) {
    this.base = new URL(".", base).href;
  }

  /** The key, kept for this tab only. */
  get key() {
    return sessionStorage.getItem(KEY) ?? "";
  }

  set key(value) {
    if (value) sessionStorage.setItem(KEY, value);
    else sessionStorage.removeItem(KEY);
  }

  /** What the server offers: GET v1/alignment. @returns {Promise<any>} */
  async describe() {
    return (await this.#fetch("v1/alignment")).json();
  }

  /** Ids of the models that may be asked for. @returns {Promise<string[]>} */
  async models() {
    const list = await (await this.#fetch("v1/models")).json();
    return list.data.map((model) => model.id);
  }

  /** Scores of answers: POST v1/alignment/score. @returns {Promise<any>} */
  async score(body, signal = undefined) {
    return (await this.#fetch("v1/alignment/score", { body, signal })).json();
  }

  /** Weights from choices: POST v1/alignment/infer. @returns {Promise<any>} */
  async infer(body, signal = undefined) {
    return (await this.#fetch("v1/alignment/infer", { body, signal })).json();
  }

  /**
   * POST v1/chat/completions, as a stream where the body says so.
   * @param {any} body
   * @param {{signal?: AbortSignal, onDelta?: (text: string, kind: "content" | "reasoning") => void,
   *   onProgress?: (progress: any) => void}} [options]
   * @returns {Promise<ChatAnswer>}
   */
  async chat(body, { signal, onDelta = () => {}, onProgress = () => {} } = {}) {
    const began = performance.now();
    const response = await this.#fetch("v1/chat/completions", { body, signal });
    const answer = new AnswerReader(began, onDelta, onProgress);
    if ((response.headers.get("content-type") ?? "").includes("event-stream")) {
      let whole = false;
      for await (const data of readEvents(response, signal)) {
        if (data === "[DONE]") whole = true;
        else answer.read(parseEvent(data));
      }
      if (!whole) throw brokenOff();
    } else {
      answer.readWhole(await response.json());
    }
    return { ...answer.result(), headers: response.headers, milliseconds: performance.now() - began };
  }

  /** @param {string} path @param {{body?: any, signal?: AbortSignal}} [options] */
  async #fetch(path, { body, signal } = {}) {
    const headers = { accept: "application/json, text/event-stream" };
    if (this.key) headers.authorization = `Bearer ${this.key}`;
    if (body !== undefined) headers["content-type"] = "application/json";
    let response;
    try {
      response = await fetch(new URL(path, this.base), {
        method: body === undefined ? "GET" : "POST",
        headers,
        body: body === undefined ? undefined : JSON.stringify(body),
        signal,
        credentials: "omit",
        cache: "no-store",
        referrerPolicy: "no-referrer",
      });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new ApiFailure({ message: "The server does not answer. Is it running, and is the network up?" });
    }
    if (!response.ok) throw await readFailure(response);
    return response;
  }
}

/** Puts an answer together from the events of a stream. */
class AnswerReader {
  constructor(began, onDelta, onProgress) {
    this.began = began;
    this.onDelta = onDelta;
    this.onProgress = onProgress;
    this.message = { role: "assistant", content: "", reasoning: "" };
    this.usage = null;
    this.alignment = null;
    this.finish = null;
    this.firstTokenMs = null;
  }

  read(event) {
    if (event.error) throw failureOf(event.error, 200);
    if (event.alignment?.progress) return this.onProgress(event.alignment.progress);
    this.usage = event.usage ?? this.usage;
    this.alignment = event.alignment ?? this.alignment;
    const choice = event.choices?.[0];
    this.finish = choice?.finish_reason ?? this.finish;
    this.#add(choice?.delta ?? {});
  }

  readWhole(answer) {
    this.#add(answer.choices[0].message);
    this.finish = answer.choices[0].finish_reason;
    this.usage = answer.usage;
    this.alignment = answer.alignment;
  }

  #add(delta) {
    const thought = delta.reasoning ?? delta.reasoning_content;
    if (!delta.content && !thought) return;
    this.firstTokenMs ??= performance.now() - this.began;
    if (thought) {
      this.message.reasoning += thought;
      this.onDelta(thought, "reasoning");
    }
    if (delta.content) {
      this.message.content += delta.content;
      this.onDelta(delta.content, "content");
    }
  }

  result() {
    const { message, usage, alignment, finish, firstTokenMs } = this;
    return { message, usage, alignment, finish, firstTokenMs };
  }
}

/**
 * The data of each event of a stream. Events may be split anywhere between reads; comments and other fields are left
 * out.
 * @param {Response} response
 * @param {AbortSignal} [signal]
 */
export async function* readEvents(response, signal) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let text = "";
  let data = [];
  try {
    while (true) {
      const { value, done } = await reader.read();
      text += done ? decoder.decode() : decoder.decode(value, { stream: true });
      // A lone CR at the end may be the first half of a CRLF.
      const lines = text.split(/\r\n|\n|\r(?!$)/);
      text = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
        else if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
      if (done) return;
    }
  } catch (error) {
    if (signal?.aborted || error instanceof ApiFailure) throw error;
    throw brokenOff();
  } finally {
    reader.cancel().catch(() => {});
  }
}

function brokenOff() {
  return new ApiFailure({ code: "broken_off", message: "The answer broke off: the connection to the server was lost." });
}

function parseEvent(data) {
  try {
    return JSON.parse(data);
  } catch {
    throw new ApiFailure({ code: "broken_off", message: "The answer broke off: what came is no event of this API." });
  }
}

function failureOf(error, status, retryAfter = null) {
  const { message = "the server says no more", code = null, param = null } = error;
  return new ApiFailure({ status, code, param, message, retryAfter });
}

/** @param {Response} response */
async function readFailure(response) {
  const seconds = Number.parseFloat(response.headers.get("retry-after") ?? "");
  const retryAfter = Number.isFinite(seconds) ? Math.max(0, Math.ceil(seconds)) : null;
  let error = null;
  try {
    error = (await response.json()).error;
  } catch {
    // of a proxy, or cut off
  }
  return failureOf(error ?? { message: `HTTP ${response.status} ${response.statusText}` }, response.status, retryAfter);
}
