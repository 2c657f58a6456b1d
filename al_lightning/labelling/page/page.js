"use strict";

// What the server says is in `state`. An answer goes through `queue` (not on disk yet) and `answered` (on disk, but not
// in `state` yet). Nothing is shown as answered before the server has said that it is on disk.

const POLL_MS = 1000, RETRY_MS = [300, 1000, 2000, 5000], TIMEOUT_MS = 10000;
const GUARD_MS = 700; // a key that was meant for a point that has just been replaced answers nothing
const SEEN_MS = 100; // nobody reacts in less to a point that has come into sight
const NUM_LAST = 10, NUM_PREPARED = 3, MIN_FILTERED = 13, TINY = 128;
const USUAL_KEYS = [..."123456789abcdefghijklmnopqrstuvwxyz"].filter((key) => !"sur".includes(key));

// Classes that are single digits or letters have themselves as keys: whoever sees a 3 presses 3.
function keysOf(classes) {
  const own = classes.map((name) => name.toLowerCase());
  const fit = own.every((name) => /^[0-9a-z]$/.test(name) && !"sur".includes(name)) && new Set(own).size === own.length;
  return fit ? own : USUAL_KEYS;
}
const WITHOUT_CLASS = { s: "skip", u: "unsure", r: "reject" };

const $ = (id) => document.getElementById(id);
let who = null;
let state = null;
let queue = [];
let answered = [];
let refused = "";
let away = "";
let current = null; // the point in sight
let guardedUntil = 0;
let lastTime = 0;
let offset = null; // from this page's clock to the server's
let isSending = false;
let shownClasses = null;
const prepared = new Map(); // pictures and texts of the next points

// ---- what is answered and what is open ----

function mine() {
  const known = new Map();
  for (const answer of [...state.batch.earlier, ...state.batch.mine]) known.set(answer.id, { ...answer, state: "answered" });
  const add = (answer, name) => {
    if (answer.who === who && !(known.get(answer.id)?.at > answer.at)) known.set(answer.id, { ...answer, state: name, isLocal: true });
  };
  for (const answer of answered) add(answer, "answered");
  for (const answer of queue) add(answer, "pending");
  return known;
}

function isOpen(point, known) {
  const answer = known.get(point.id);
  if (answer === undefined || answer.kind === "undo") return !state.batch.settled.includes(point.id);
  return !answer.isLocal && state.batch.again.includes(point.id);
}

const pointOf = (id) => state?.batch?.points.find((point) => point.id === id);
const openPoints = () => { const known = mine(); return state.batch.points.filter((point) => isOpen(point, known)); };
const byTime = (one, other) => (one.at < other.at ? 1 : one.at > other.at ? -1 : 0);
const given = () => [...mine().values()].filter((answer) => answer.kind !== "undo").sort(byTime);
const words = (answer) => (answer.kind === "label" ? answer.label : answer.kind);

// ---- talking with the server ----

async function ask(path, options = {}) {
  const response = await fetch(path, { ...options, signal: AbortSignal.timeout(TIMEOUT_MS) });
  const content = response.headers.get("content-type")?.startsWith("application/json")
    ? await response.json() : { error: await response.text() };
  if (content.now) offset = Date.parse(content.now) - performance.now();
  return { status: response.status, content };
}

async function poll() {
  const began = performance.now();
  const asker = who;
  try {
    const query = new URLSearchParams({ who: who ?? "" });
    if (state !== null && state.who === who) query.set("seen", state.revision);
    const { status, content } = await ask(`state?${query}`);
    if (status !== 200) throw new Error(content.error);
    if (asker === who) take(content, began);
    look_again();
  } catch (error) {
    away = `The server is away (${error.message}).`;
  }
  render();
  setTimeout(poll, POLL_MS);
}

function take(content, began) {
  away = "";
  answered = answered.filter((answer) => answer.savedAt > began);
  if (content.who === undefined) return; // nothing has changed
  if (state !== null && state.run !== content.run) return restart();
  if (who === null) begin(content);
  if (content.who !== who) return;
  const isFirst = state === null;
  state = content;
  if (current !== null && (state.batch === null || !current.isCorrection && pointOf(current.id) === undefined)) {
    current = null;
    delete document.body.dataset.shown;
  }
  if (state.batch === null) return;
  if (current === null) advance(!isFirst);
}

// Shows the point in sight as soon as it can be seen: a run that is started again writes pictures and texts anew.
function look_again() {
  if (!current?.isUnseen) return;
  const mark = current;
  const content = prepare(mark.id);
  content.ready.then(() => {
    if (current !== mark) return;
    if (content.isFailed) return $("item").replaceChildren(content.element);
    show(mark.id, mark.isCorrection);
    render();
  });
}

function begin(content) {
  const name = `who ${content.run}`;
  who = sessionStorage.getItem(name) || content.who || localStorage.getItem(name) || "";
  $("who").value = who;
  queue = JSON.parse(sessionStorage.getItem(`queue ${content.run}`) ?? "[]");
  send();
}

// The server labels another run now, in which ids mean other points. What was not sent stays stored for this run.
function restart() {
  queue = [];
  location.reload();
}

async function send() {
  if (isSending) return;
  isSending = true;
  for (let failures = 0; queue.length > 0;) {
    const answer = queue[0];
    let status = 0, content = { error: "the server is away" };
    try {
      const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(answer) };
      ({ status, content } = await ask("answer", options));
    } catch (error) {
      content = { error: `The server is away (${error.message}).` };
    }
    if (status === 200) {
      queue.shift();
      answered.push({ ...answer, savedAt: performance.now() });
      [failures, away] = [0, ""];
      const next = current === null ? "" : ` Now point ${current.id}.`;
      say(answer.kind === "undo" ? `Taken back: the answer to point ${answer.id}.${next}` : `Saved: ${words(answer)} for point ${answer.id}.${next}`);
    } else if (status === 409) {
      return restart();
    } else if (status >= 400 && status < 500) {
      queue.shift();
      refused = `Point ${answer.id} was not answered: ${content.error}`;
      if (current === null && state?.batch) advance(true);
    } else {
      away = content.error;
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS[Math.min(failures++, RETRY_MS.length - 1)]));
    }
    keep();
    render();
  }
  isSending = false;
}

const keep = () => sessionStorage.setItem(`queue ${state?.run ?? queue[0]?.run}`, JSON.stringify(queue));

// ---- answering ----

function answer(kind, label = null) {
  if (current === null) return;
  if (!current.isTaking) return say("Not taken: this point has only just come into sight.");
  if (kind === "skip" && pointOf(current.id) === undefined) return say("A point of an earlier batch cannot be skipped.");
  if (kind !== "skip" && current.isUnseen) return say(`Not taken: point ${current.id} cannot be seen.`);
  pause();
  put({ id: current.id, kind, ...(label === null ? {} : { label }), seconds: Math.round(current.seen) / 1000 });
  current = null;
  refused = "";
  advance(false);
  render();
  leave_buttons();
}

function undo() {
  if (state?.batch == null) return;
  const last = current?.isCorrection ? mine().get(current.id) : given().find((each) => pointOf(each.id) !== undefined);
  if (last === undefined || last.kind === "undo") return say("There is nothing to undo in this batch.");
  put({ id: last.id, kind: "undo" });
  current = null;
  if (pointOf(last.id) === undefined) advance(false); else show(last.id, false);
  render();
  leave_buttons();
}

// A further Enter is none for the next point.
function leave_buttons() {
  $($("work").hidden ? "rest-title" : "title").focus();
}

function put(entry) {
  queue.push({ run: state.run, who, at: time(entry.id), ...entry });
  keep();
  send();
}

// The server's time, and later than all that is known here, so that the order of a person's answers is that of his keys.
function time(id) {
  const before = Date.parse((mine().get(id)?.at || "1970-01-01T00:00:00.000Z").slice(0, 23) + "Z");
  lastTime = Math.max(Math.floor(performance.now() + offset), lastTime + 1, before + 1);
  return new Date(lastTime).toISOString().replace("Z", "000Z");
}

function correct(id) {
  show(id, true);
  render();
  leave_buttons();
}

function leave() {
  if (!current?.isCorrection) return;
  current = null;
  if (state.batch !== null) advance(false);
  render();
  leave_buttons();
}

// ---- the point in sight ----

function advance(isGuarded) {
  const [next] = openPoints();
  current = null;
  delete document.body.dataset.shown;
  if (next === undefined) return;
  if (isGuarded) guardedUntil = performance.now() + GUARD_MS;
  show(next.id, false);
}

function show(id, isCorrection) {
  current = { id, isCorrection, seen: 0, since: null, isPlaced: false, isTaking: false, isUnseen: false };
  const mark = current;
  const content = prepare(id);
  const place = () => {
    if (current !== mark) return;
    $("item").replaceChildren(content.element);
    content.element.scrollTop = 0;
    current.isPlaced = true;
    current.isUnseen = content.isFailed;
    renderButtons();
    resume();
    setTimeout(take_keys, Math.max(SEEN_MS, guardedUntil - performance.now()));
    for (const point of openPoints().slice(0, NUM_PREPARED)) prepare(point.id);
  };
  const take_keys = () => {
    if (current !== mark) return;
    current.isTaking = true;
    document.body.dataset.shown = id;
  };
  delete document.body.dataset.shown;
  if (content.isReady) return place();
  $("item").replaceChildren(element("p", "none", "Loading ..."));
  content.ready.then(place);
}

function prepare(id) {
  const shows = pointOf(id)?.shows;
  const before = prepared.get(id);
  if (before !== undefined && before.shows === shows && !before.isFailed) return before;
  prepared.delete(id);
  const content = { shows, isReady: false, isFailed: false, element: null };
  const settle = (made, isFailed = false) => Object.assign(content, { element: made, isReady: true, isFailed });
  content.ready = load(id, shows).then(
    (made) => settle(made), (error) => settle(marked(element("p", "none", ""), unseen(id, error)), true));
  prepared.set(id, content);
  if (prepared.size > 4 * NUM_PREPARED) prepared.delete(prepared.keys().next().value);
  return content;
}

function unseen(id, error) {
  const reason = error.constructor === Error ? error.message : `Point ${id} cannot be loaded (${error.message}).`; // else of fetch
  const taken = pointOf(id) === undefined ? "your answer to it can be taken back (Backspace) or left (Escape)" : "it can be skipped only";
  return `${reason}\nAs nobody sees point ${id} here, ${taken}.`;
}

async function load(id, shows) {
  if (shows === null) throw new Error(`Nothing shows point ${id}. A method \`render(item)\` of the data module makes a picture or a text of it.`);
  if (shows !== "text") {
    const picture = new Image();
    picture.alt = `Point ${id}`;
    picture.src = `shown/${id}`;
    try {
      await picture.decode();
      if (Math.max(picture.naturalWidth, picture.naturalHeight) <= TINY) picture.className = "tiny";
      return picture;
    } catch {
      if (shows === "picture") {
        const { content } = await ask(`shown/${id}`);
        throw new Error(content.error && content.error.length < 500 ? content.error : `The picture of point ${id} is damaged. Start the run's command again, which writes it anew.`);
      }
    }
  }
  const response = await fetch(`shown/${id}`, { signal: AbortSignal.timeout(TIMEOUT_MS) }); // of an earlier batch it may be either
  if (!response.ok) throw new Error((await response.json()).error);
  const text = element("div", "text", await response.text());
  text.tabIndex = 0;
  text.dir = "auto";
  text.setAttribute("role", "region");
  text.setAttribute("aria-label", `Text of point ${id}`);
  return text;
}

function pause() {
  if (current?.since == null) return;
  current.seen += performance.now() - current.since;
  current.since = null;
}

function resume() {
  if (current?.isPlaced && current.since === null && !document.hidden) current.since = performance.now();
}

// ---- what is on the page ----

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.textContent = text;
  return made;
}

function put_text(id, text) {
  if ($(id).textContent !== text) $(id).textContent = text;
}

// What messages have in backquotes is a command or a name of the code.
function marked(node, text) {
  node.replaceChildren(...text.split("`").map((part, place) => (place % 2 === 1 ? element("code", "", part) : part)));
  return node;
}

function put_marked(id, text) {
  if ($(id).dataset.text === text) return;
  $(id).dataset.text = text;
  marked($(id), text);
}

const counted = (number, one, more) => `${number} ${number === 1 ? one : more}`;

const say = (text) => put_text("news", text);

function render() {
  if (state === null) return put_marked("problem", away);
  put_text("run", state.name);
  const waiting = queue.length === 0 ? "" : `\n${counted(queue.length, "of your answers waits here and is sent again by itself", "of your answers wait here and are sent again by themselves")}. Keep this page open.`;
  put_marked("problem", [refused, away && away + waiting, state.problem].filter(Boolean).join("\n"));
  put_text("unread", state.unread.map((text) => `Not read yet: ${text}`).join("\n"));
  const batch = state.batch;
  const isWorking = current !== null && batch !== null;
  $("work").hidden = !isWorking;
  $("rest").hidden = isWorking;
  if (batch !== null) {
    const saved = new Set(queue.filter((each) => each.who === who && each.kind !== "undo").map((each) => each.id));
    const open = openPoints();
    const numDone = batch.points.filter((point) => !open.includes(point) && !saved.has(point.id)).length;
    $("progress").max = batch.points.length || 1;
    $("progress").value = numDone;
    put_text("count", `${numDone} of ${batch.points.length}`);
    document.title = `${numDone} of ${batch.points.length} \u2013 ${state.name}`;
    renderClasses(batch.classes);
    renderLast();
  } else {
    $("progress").value = 0;
    put_text("count", "");
    document.title = `Label ${state.name}`;
    $("last").replaceChildren();
  }
  if (isWorking) renderPoint(); else renderRest(batch);
}

function renderPoint() {
  const point = pointOf(current.id);
  const before = mine().get(current.id);
  const isAnswered = before !== undefined && before.kind !== "undo";
  put_text("title", current.isCorrection && isAnswered ? `Correct point ${current.id}, answered: ${words(before)}` : `Point ${current.id}`);
  $("leave").hidden = !current.isCorrection;
  const notes = [];
  if (state.batch.again.includes(current.id) && !current.isCorrection && isAnswered) notes.push(`Somebody else has answered differently. Your answer was ${words(before)}: please look again.`);
  if (point?.predicted != null) notes.push(`Prediction: ${point.predicted}${point.probability == null ? "" : ` (${Math.round(100 * point.probability)} %)`}`);
  if (state.batch.is_closed && !current.isCorrection) notes.push("The run has enough answers to go on; further ones count too.");
  put_text("note", notes.join(" "));
  renderButtons();
}

function renderButtons() {
  for (const button of [...$("classes").children, $("unsure"), $("reject")]) button.disabled = current?.isUnseen === true;
  $("skip").disabled = current !== null && pointOf(current.id) === undefined;
}

function renderRest(batch) {
  const numSaving = queue.length + answered.length;
  let title = "No points are asked for at the moment", text = "The run is training, or has ended. The next points will appear here by themselves.";
  if (!who) [title, text] = ["Who are you?", "Type your name above; your answers are stored under it."];
  else if (state.problem) [title, text] = ["The files of the run cannot be used", "Once they are mended, this page goes on by itself."];
  else if (batch !== null && numSaving > 0) [title, text] = [numSaving === 1 ? "Your last answer is being saved" : "Your last answers are being saved", "Keep this page open."];
  else if (batch !== null && batch.is_closed) [title, text] = ["Nothing is left to answer", `${tally(batch)} Start the command again that began the run, \`al-lightning fit ...\` or your script, unless it is waiting already. The next points will appear here by themselves.`];
  else if (batch !== null) [title, text] = ["No point is left for you", `${tally(batch)} ${counted(batch.num_missing, "point waits", "points wait")} for other people. \`al-lightning fit ... --finish\`, or \`active_fit(..., finish=True)\` in a script, goes on without ${batch.num_missing === 1 ? "it" : "them"}.`];
  put_text("rest-title", title);
  put_marked("rest-text", text);
}

// "Of 10 points: 8 with a label, 1 unsure, 1 skipped."
function tally(batch) {
  const names = [["label", "with a label"], ["unsure", "unsure"], ["reject", "rejected"], ["skip", "skipped"]];
  const parts = names.filter(([kind]) => batch.tally[kind]).map(([kind, name]) => `${batch.tally[kind]} ${name}`);
  return `Of ${counted(batch.points.length, "point", "points")}: ${parts.join(", ") || "none with an answer"}.`;
}

function renderClasses(classes) {
  if (JSON.stringify(classes) === shownClasses) return;
  shownClasses = JSON.stringify(classes);
  const keys = keysOf(classes);
  $("filter-box").hidden = classes.length < MIN_FILTERED;
  $("classes").replaceChildren(...classes.map((name, position) => {
    const button = element("button", "", "");
    button.type = "button";
    button.dataset.name = name;
    if (position < keys.length) {
      button.append(element("kbd", "", keys[position]), " ");
      button.setAttribute("aria-keyshortcuts", keys[position]);
    }
    const label = element("bdi", "", name);
    button.append(label);
    button.addEventListener("click", () => answer("label", name));
    return button;
  }));
  filter("");
}

function renderLast() {
  const focused = document.activeElement?.closest("#last li")?.dataset.id;
  const entries = given().slice(0, NUM_LAST);
  const key = JSON.stringify(entries);
  if ($("last").dataset.key === key) return;
  $("last").dataset.key = key;
  $("last").replaceChildren(...entries.map((each) => {
    const item = element("li", "", "");
    item.dataset.id = each.id;
    item.dataset.state = each.state;
    const button = element("button", "", "");
    button.type = "button";
    button.append(element("bdi", "", `${each.id}: ${words(each)}`), element("span", "state", each.state === "pending" ? "saving ..." : "saved"));
    button.title = "Correct this answer";
    button.addEventListener("click", () => correct(each.id));
    item.append(button);
    return item;
  }));
  if (focused !== undefined) $("last").querySelector(`[data-id="${focused}"] button`)?.focus();
}

function matching() {
  return [...$("classes").children].filter((button) => !button.hidden);
}

function filter(text) {
  const part = text.trim().toLowerCase();
  $("filter").value = text;
  for (const button of $("classes").children) button.hidden = !button.dataset.name.toLowerCase().includes(part);
}

// ---- keys ----

function keyOf(event) {
  if (/^[a-z0-9]$/i.test(event.key)) return event.key.toLowerCase();
  const found = /^(?:Digit([0-9])|Key([A-Z]))$/.exec(event.code); // other alphabets, and digits that need shift
  return (found?.[1] ?? found?.[2] ?? event.key).toLowerCase();
}

function onFilterKey(event) {
  if (event.key === "Escape") { filter(""); $("title").focus(); }
  if (event.key !== "Enter") return;
  const text = $("filter").value.trim().toLowerCase();
  const found = matching();
  const exact = found.filter((button) => button.dataset.name.toLowerCase() === text);
  const [chosen, ...more] = exact.length === 1 ? exact : found;
  if (chosen === undefined || more.length > 0) return say(found.length === 0 ? "No class matches." : `${found.length} classes match: type more, or go on to one of them with Tab.`);
  filter("");
  answer("label", chosen.dataset.name);
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (event.target === $("filter")) return onFilterKey(event);
  if (event.target === $("who")) { if (event.key === "Enter") $("who").blur(); return; }
  if (event.key === "/" && !$("filter-box").hidden && !$("work").hidden) {
    event.preventDefault();
    $("filter").focus();
    return;
  }
  if (event.key === "," && state?.batch) {
    event.preventDefault();
    const last = $("last").querySelector("button");
    if (last === null) return say("There is no answer to correct yet.");
    return last.focus();
  }
  if (event.key === "Escape") return document.activeElement?.closest("#last") ? leave_buttons() : leave();
  if (event.key === "Backspace") { event.preventDefault(); if (!event.repeat) undo(); return; }
  const key = keyOf(event);
  if (event.repeat || $("work").hidden || !/^[0-9a-z]$/.test(key)) return;
  event.preventDefault();
  if (key in WITHOUT_CLASS) return answer(WITHOUT_CLASS[key]);
  const name = state.batch.classes[keysOf(state.batch.classes).indexOf(key)];
  if (name === undefined) return say(`No class has the key ${key}.`);
  filter("");
  answer("label", name);
});

for (const kind of Object.values(WITHOUT_CLASS)) $(kind).addEventListener("click", () => answer(kind));
$("undo").addEventListener("click", undo);
$("leave").addEventListener("click", leave);
$("filter").addEventListener("input", () => filter($("filter").value));
$("who").addEventListener("change", () => {
  who = $("who").value.trim();
  if (state !== null) for (const storage of [sessionStorage, localStorage]) storage.setItem(`who ${state.run}`, who);
  [answered, current] = [[], null];
  if (state !== null) [state.batch, state.who] = [null, null];
  delete document.body.dataset.shown;
  render();
});
document.addEventListener("visibilitychange", () => (document.hidden ? pause() : resume()));
window.addEventListener("beforeunload", (event) => { if (queue.length > 0) event.preventDefault(); });
poll();
