// The relay's page: draws status.json twice a second.
"use strict";

const byId = id => document.getElementById(id);
const number = value => value.toLocaleString("en", { maximumFractionDigits: 0 });
const samples = [];

function bytes(value) {
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (value < 1000 || unit === "GB") return `${value.toFixed(unit === "B" ? 0 : 1)} ${unit}`;
    value /= 1000;
  }
}

function shape(name, attributes, title) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (title) {
    const text = document.createElementNS("http://www.w3.org/2000/svg", "title");
    text.textContent = title;
    element.append(text);
  }
  return element;
}

function place(at, of, radius) {
  const angle = 2 * Math.PI * at / of - Math.PI / 2;
  return [radius * Math.cos(angle), radius * Math.sin(angle)];
}

function drawRing(status) {
  const rings = [], lines = [];
  const trustees = [...Array(status.group_trustees).keys()].map(at => place(at, status.group_trustees, 55));
  trustees.forEach(([x, y], at) => {
    const state = status.online_trustees.includes(at) ? "on" : "off";
    rings.push(shape("rect", { x: x - 5, y: y - 5, width: 10, height: 10, rx: 2, class: state },
      `trustee ${at}: ${state === "on" ? "linked" : "away"}`));
  });
  const radius = Math.min(6, 330 / status.group_clients);
  for (let at = 0; at < status.group_clients; at++) {
    const [x, y] = place(at, status.group_clients, 116);
    const state = status.members.includes(at) ? "in"
      : status.online_clients.includes(at) ? "on" : "off";
    if (state === "in") {
      for (const [u, v] of trustees) lines.push(shape("line", { x1: x, y1: y, x2: u, y2: v }));
    }
    const words = { in: "in the interval", on: "linked", off: "away" };
    rings.push(shape("circle", { cx: x, cy: y, r: radius, class: state }, `client ${at}: ${words[state]}`));
  }
  byId("ring").replaceChildren(...rings);
  byId("lines").replaceChildren(...lines);
  byId("size").textContent = status.members.length;
}

function drawFigures(status) {
  const blame = status.last_blame === null ? "none"
    : status.last_blame + (status.last_blame_ms === null ? "" : `, after ${number(status.last_blame_ms)} ms`);
  const figures = [
    ["Clients linked", `${status.online_clients.length} of ${status.group_clients}`],
    ["Trustees linked", `${status.online_trustees.length} of ${status.group_trustees}`],
    ["Interval", status.interval === 0 ? "none" : number(status.interval)],
    ["Rounds a second", number(status.rounds_per_s)],
    ["In flight", `${status.in_flight} of ${status.window}`],
    ["Open slots", `${status.open_slots}`],
    ["Connections", number(status.connections)],
    ["Payload up, down", status.payload_bytes.map(bytes).join(", ")],
    ["Void rounds", number(status.void)],
    ["Collisions", number(status.collisions), status.collisions > 0],
    ["Last blame", blame, status.last_blame !== null],
  ];
  byId("figures").replaceChildren(...figures.flatMap(([name, value, bad]) => {
    const term = document.createElement("dt"), detail = document.createElement("dd");
    term.textContent = name;
    detail.textContent = value;
    if (bad) detail.className = "bad";
    return [term, detail];
  }));
}

function drawRate(status) {
  samples.push(status.rounds_per_s);
  if (samples.length > 121) samples.shift();
  const most = Math.max(...samples, 1);
  const points = samples.map((value, at) =>
    `${(240 - 2 * (samples.length - 1 - at)).toFixed(1)},${(46 - 42 * value / most).toFixed(1)}`);
  document.querySelector(".curve").setAttribute("points", points.join(" "));
  const first = 240 - 2 * (samples.length - 1);
  document.querySelector(".area").setAttribute("points", `${first},48 ${points.join(" ")} 240,48`);
}

function drawSlots(status) {
  const squares = [...Array(status.group_clients).keys()].map(at => {
    const square = document.createElement("i");
    if (at < status.open_slots) square.className = "lit";
    return square;
  });
  byId("slots").replaceChildren(...squares);
  byId("slots").setAttribute("aria-label", `${status.open_slots} of ${status.group_clients} slots speak`);
}

function say(text, bad) {
  byId("state").textContent = text;
  byId("state").className = bad ? "bad" : "";
}

async function renew() {
  try {
    const answer = await fetch("status.json", { cache: "no-store", signal: AbortSignal.timeout(2000) });
    if (!answer.ok) throw new Error(answer.statusText);
    const status = await answer.json();
    drawRing(status);
    drawFigures(status);
    drawRate(status);
    drawSlots(status);
    document.querySelector("main").className = "";
    if (status.interval === 0) say("No interval runs: too few members, or a trustee is away.", true);
    else say(`Interval ${status.interval}, ${status.members.length} members.`, false);
  } catch {
    document.querySelector("main").className = "stale";
    say("The relay does not answer; this is what it said last.", true);
  }
  setTimeout(renew, 500);
}

renew();
