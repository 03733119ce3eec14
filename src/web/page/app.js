'use strict';
// Everything that comes from outside is put into the page as text, never as markup.

const $ = (id) => document.getElementById(id);
let token = '';
let typing = 0;

function element(kind, classes, text) {
  const made = document.createElement(kind);
  if (classes) made.className = classes;
  if (text !== undefined) made.textContent = text;
  return made;
}

// Control characters and those that turn the direction of text are shown as a replacement mark.
function shown(text) {
  return text.replace(/[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g, '\ufffd');
}

function bytes(count) {
  const units = ['bytes', 'KiB', 'MiB', 'GiB', 'TiB'];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) { count /= 1024; unit += 1; }
  return `${unit === 0 ? count : count.toFixed(count < 10 ? 2 : 1)} ${units[unit]}`;
}

function duration(seconds) {
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor(seconds % 3600 / 60)} min`;
}

function button(text, label, action) {
  const made = element('button', '', text);
  made.type = 'button';
  made.setAttribute('aria-label', label);
  made.addEventListener('click', action);
  return made;
}

async function ask(path, body, type = 'application/json') {
  const answer = await fetch(path, {
    method: 'POST',
    headers: { 'x-cepa-token': token, 'content-type': type },
    body: type === 'application/json' ? JSON.stringify(body ?? {}) : body,
  });
  if (answer.status === 401) { location.reload(); throw new Error('the session ended'); }
  const said = await answer.json();
  if (!answer.ok) throw new Error(said.error);
  return said;
}

function say(id, text, isGood = false) {
  $(id).textContent = shown(text);
  $(id).classList.toggle('good', isGood);
}

function attempt(id, action) {
  return action().then((text) => say(id, text ?? '', true), (error) => say(id, error.message));
}

// Lists keep their elements, so that focus and open buttons survive an update.
function fill(list, items, build, update) {
  const known = new Map([...list.children].map((child) => [child.dataset.id, child]));
  items.forEach((item, at) => {
    let row = known.get(item.id);
    known.delete(item.id);
    if (!row) {
      row = build(item);
      row.dataset.id = item.id;
    }
    update(row, item);
    if (list.children[at] !== row) list.insertBefore(row, list.children[at] ?? null);
  });
  known.forEach((row) => row.remove());
}

function part(row, name) { return row.querySelector(`[data-part="${name}"]`); }

function withPart(made, name) { made.dataset.part = name; return made; }

function buildDownload(item) {
  const row = element('li');
  const line = element('div', 'item');
  const actions = element('div', 'actions');
  line.append(withPart(element('span', 'name'), 'name'), actions);
  const act = (what) => () => attempt('get-message', () => ask(`/api/downloads/${item.id}/${what}`).then(() => ''));
  actions.append(
    withPart(button('Pause', `Pause ${shown(item.name)}`, act('pause')), 'pause'),
    withPart(button('Resume', `Resume ${shown(item.name)}`, act('resume')), 'resume'),
    withPart(button('Remove', `Remove ${shown(item.name)} from this list`, act('remove')), 'remove'),
  );
  const bar = withPart(element('progress'), 'bar');
  bar.max = 1;
  bar.setAttribute('aria-label', `Progress of ${shown(item.name)}`);
  row.append(line, bar, withPart(element('p', 'facts'), 'facts'), withPart(element('p', 'reason'), 'reason'));
  return row;
}

function updateDownload(row, item) {
  const runs = item.state === 'running' || item.state === 'checking';
  row.className = item.state;
  part(row, 'name').textContent = shown(item.name) + (item.is_dir ? '/' : '');
  const ratio = item.state === 'done' ? 1 : item.size ? item.have / item.size : 0;
  part(row, 'bar').value = ratio;
  const facts = [`${bytes(item.have)} of ${bytes(item.size)}`, `${Math.floor(ratio * 100)} %`];
  if (runs && item.rate >= 1) facts.push(`${bytes(Math.round(item.rate))}/s`);
  if (runs && item.eta_s !== null) facts.push(`${duration(item.eta_s)} left`);
  if (item.sources.length) facts.push(item.sources.length === 1 ? '1 source' : `${item.sources.length} sources`);
  part(row, 'facts').textContent = facts.join(' \u00b7 ');
  const reason = part(row, 'reason');
  reason.className = `reason ${item.state === 'failed' ? 'bad' : item.state === 'done' ? 'good' : ''}`;
  const text = item.state === 'checking' ? 'checking what is there'
    : item.state === 'done' ? `verified, in ${item.path}` : item.reason ?? '';
  reason.textContent = shown(text);
  part(row, 'pause').hidden = !runs;
  part(row, 'resume').hidden = runs || item.state === 'done';
}

function buildShare(item) {
  const row = element('li');
  const line = element('div', 'item');
  const actions = element('div', 'actions');
  const copy = button('Copy link', `Copy the link to ${shown(item.name)}`, async () => {
    try {
      await navigator.clipboard.writeText(row.dataset.link);
      copy.textContent = 'Copied';
    } catch {
      const field = element('input');
      field.value = row.dataset.link;
      field.readOnly = true;
      field.setAttribute('aria-label', 'Link');
      row.append(field);
      field.select();
    }
    setTimeout(() => { copy.textContent = 'Copy link'; }, 2000);
  });
  const stop = button('Stop', `Stop sharing ${shown(item.name)}`, () => attempt('share-message', () => ask(`/api/shares/${item.id}/remove`).then(() => '')));
  actions.append(copy, stop);
  line.append(withPart(element('span', 'name'), 'name'), actions);
  row.append(line, withPart(element('p', 'facts'), 'facts'), withPart(element('p', 'reason bad'), 'reason'));
  return row;
}

function updateShare(row, item) {
  row.dataset.link = item.link;
  part(row, 'name').textContent = shown(item.name) + (item.is_dir ? '/' : '');
  const facts = [bytes(item.size), item.is_listed ? 'in the catalogue' : 'only with the link'];
  if (item.sent) facts.push(`${bytes(item.sent)} sent`);
  if (item.readers) facts.push(item.readers === 1 ? 'to 1 peer now' : `to ${item.readers} peers now`);
  part(row, 'facts').textContent = facts.join(' \u00b7 ');
  part(row, 'reason').textContent = shown(item.problem ?? '');
}

function buildEntry(item) {
  const row = element('li');
  const line = element('div', 'item');
  const get = button('Get', `Get ${shown(item.name)}`, () => attempt('get-message', () => ask('/api/get', { what: item.id }).then(() => '')));
  line.append(withPart(element('span', 'name'), 'name'), withPart(element('span', 'facts'), 'facts'), withPart(get, 'get'));
  row.append(line);
  return row;
}

function updateEntry(row, item) {
  part(row, 'name').textContent = shown(item.name);
  part(row, 'facts').textContent = `${bytes(item.size)} \u00b7 ${item.is_mine ? 'yours' : item.sources === 1 ? '1 source' : `${item.sources} sources`}`;
  part(row, 'get').hidden = item.is_mine;
}

function hop(classes, text) { return element('span', `hop ${classes}`, shown(text)); }

function buildCircuit() { return element('div', 'circuit'); }

function updateCircuit(row, item) {
  const parts = [hop('you', 'you')];
  item.hops.forEach((name, at) => {
    const waits = at >= item.built;
    const last = at === item.hops.length - 1;
    parts.push(element('span', 'arrow', '\u2192'), hop(waits ? 'waiting' : last ? 'exit' : '', last ? `${name} (exit)` : name));
  });
  parts.push(element('span', 'arrow', '\u2192'), hop('waiting', item.sessions ? 'other peers' : 'tracker'));
  const facts = [item.built < item.hops.length ? `building hop ${item.built + 1} of ${item.hops.length}` : item.is_active ? 'in use for what is new' : item.sessions ? 'finishing what it carries' : 'ready as a spare', `${duration(item.age_s)} old`];
  if (item.rtt_ms !== null) facts.push(`${item.rtt_ms.toFixed(0)} ms to the exit and back`);
  if (item.sessions) facts.push(item.sessions === 1 ? '1 session' : `${item.sessions} sessions`);
  parts.push(element('span', 'facts', facts.join(' \u00b7 ')));
  const key = parts.map((piece) => piece.className + piece.textContent).join('|');
  if (row.dataset.key !== key) { row.dataset.key = key; row.replaceChildren(...parts); }
}

function networkText(network) {
  switch (network.stage) {
    case 'ready': return ['good', 'connected'];
    case 'building_hop': return ['', `building hop ${network.hop} of ${network.of}`];
    case 'tracker_unreachable': return ['bad', network.why ? `tracker: ${network.why}` : 'the tracker does not answer'];
    default: return ['', 'starting'];
  }
}

function show(state) {
  const [kind, text] = networkText(state.network);
  document.querySelector('.dot').className = `dot ${kind}`;
  if ($('network-text').textContent !== text) $('network-text').textContent = shown(text);
  fill($('downloads'), state.downloads, buildDownload, updateDownload);
  fill($('shares'), state.shares, buildShare, updateShare);
  fill($('circuits'), state.circuits.map((item) => ({ ...item, id: String(item.number) })), buildCircuit, updateCircuit);
  fill($('reading'), state.reading.map((item, at) => ({ ...item, id: String(at) })), () => {
    const row = element('li');
    const bar = withPart(element('progress'), 'bar');
    bar.max = 1;
    row.append(withPart(element('span', 'facts'), 'facts'), bar);
    return row;
  }, (row, item) => {
    part(row, 'facts').textContent = `reading ${shown(item.name)}`;
    part(row, 'bar').value = item.size ? item.done / item.size : 0;
  });
  for (const name of ['downloads', 'shares', 'circuits']) $(`${name}-empty`).hidden = state[name].length > 0;
}

async function loadCatalogue() {
  const typed = $('what').value.trim();
  const filter = typed.startsWith('cepa:') ? '' : typed;
  try {
    const answer = await fetch(`/api/catalogue?filter=${encodeURIComponent(filter)}`);
    const said = await answer.json();
    if (!answer.ok) throw new Error(said.error);
    fill($('catalogue'), said.entries, buildEntry, updateEntry);
    $('catalogue-count').textContent = `(${said.entries.length})`;
    $('catalogue-empty').hidden = said.entries.length > 0;
    $('catalogue-empty').textContent = filter ? 'No name in the catalogue contains this.' : 'Nobody shares anything in the catalogue yet.';
  } catch (error) {
    $('catalogue-empty').hidden = false;
    $('catalogue-empty').textContent = shown(error.message);
  }
}

function visibility() { return document.querySelector('[name=visibility]:checked').value; }

async function drop(files) {
  for (const file of files) {
    await attempt('share-message', async () => {
      say('share-message', `taking ${file.name}`, true);
      await ask(`/api/drop?name=${encodeURIComponent(file.name)}&visibility=${visibility()}`, file, 'application/octet-stream');
      return `${file.name} is shared`;
    });
  }
}

$('get').addEventListener('submit', (event) => {
  event.preventDefault();
  attempt('get-message', async () => {
    await ask('/api/get', { what: $('what').value.trim() });
    $('what').value = '';
    loadCatalogue();
    return '';
  });
});
$('what').addEventListener('input', () => { clearTimeout(typing); typing = setTimeout(loadCatalogue, 250); });
$('share').addEventListener('submit', (event) => {
  event.preventDefault();
  attempt('share-message', async () => {
    const said = await ask('/api/share', { path: $('path').value.trim(), visibility: visibility() });
    $('path').value = '';
    return said.skipped ? `shared; left out: ${said.skipped} links or devices` : 'shared';
  });
});
$('pick').addEventListener('change', () => drop($('pick').files));
for (const kind of ['dragenter', 'dragover']) {
  addEventListener(kind, (event) => { event.preventDefault(); $('drop').hidden = false; });
}
addEventListener('dragleave', (event) => { if (!event.relatedTarget) $('drop').hidden = true; });
addEventListener('drop', (event) => {
  event.preventDefault();
  $('drop').hidden = true;
  drop(event.dataTransfer.files);
});

async function start() {
  const answer = await fetch('/api/state');
  if (!answer.ok) { location.reload(); return; }
  const said = await answer.json();
  token = said.token;
  show(said.state);
  loadCatalogue();
  setInterval(() => { if (!document.hidden) loadCatalogue(); }, 15000);
  const events = new EventSource('/api/events');
  events.onmessage = (event) => show(JSON.parse(event.data));
  events.onerror = () => {
    document.querySelector('.dot').className = 'dot bad';
    $('network-text').textContent = 'the peer does not answer; is it still running?';
  };
}
start();
