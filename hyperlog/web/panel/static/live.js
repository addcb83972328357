// Live: rows come in above, at most a few hundred are kept; scrolling down or a key stops them.

import { keys, notice, timeText } from 'hyperlog/panel.js';
import { mark } from 'hyperlog/explore.js';

const RETRY = 3000; // ms after which a connection is tried again that the browser has given up
const KEPT = 500; // rows on the page
const HELD = 500; // rows that wait while it is paused
const LEVELS = { 5: ['trace', 'T'], 10: ['debug', 'D'], 20: ['info', 'I'], 30: ['warning', 'W'], 40: ['error', 'E'], 50: ['critical', 'C'] };

const table = document.querySelector('[data-live]');
const body = table.tBodies[0];
const state = document.querySelector('[data-state]');
const rate = document.querySelector('[data-rate]');
const hiddenText = document.querySelector('[data-hidden]');
const pauseButton = document.querySelector('[data-pause]');
let paused = false;
let byScroll = false;
let held = [];
let hidden = 0;
let seen = [];
let lookedAt = Date.now(); // when this page last ran: a computer may have been asleep since
let lostAt = null;

function cell(row, className, ...content) {
  const element = document.createElement('td');
  element.className = className;
  element.append(...content);
  row.append(element);
  return element;
}

function cut(text, tag = 'span') {
  const element = document.createElement(tag);
  element.className = 'cut';
  element.textContent = text;
  element.title = text;
  return element;
}

function rowOf([id, time, level, bucket, instance, kind, message, cells]) {
  const row = document.createElement('tr');
  row.className = `record kind-${kind}`;
  row.tabIndex = -1;
  row.dataset.id = id;
  row.setAttribute('aria-expanded', 'false');
  const link = document.createElement('a');
  link.href = `/record/${encodeURIComponent(id)}`;
  link.tabIndex = -1;
  const when = document.createElement('time');
  const iso = new Date(time).toISOString();
  when.dateTime = iso;
  when.title = `${iso.slice(0, 23).replace('T', ' ')} UTC`;
  when.textContent = timeText(time);
  link.append(when);
  cell(row, 'data when', link);
  const [name, letter] = LEVELS[level] || ['trace', '?'];
  const badge = document.createElement('span');
  badge.className = `level level-${name}`;
  badge.title = name.toUpperCase();
  badge.textContent = letter;
  cell(row, '', badge);
  cell(row, 'data who-sent', cut(`${bucket}/${instance}`));
  for (const text of cells) cell(row, 'data cell', cut(text));
  cell(row, 'data rest', cut(message, 'bdi'));
  return row;
}

function show(rows) {
  const fragment = document.createDocumentFragment();
  for (const one of rows.slice(-KEPT).reverse()) fragment.append(rowOf(one));
  mark(fragment);
  body.prepend(fragment);
  while (body.children.length > KEPT) body.lastElementChild.remove();
  document.querySelector('[data-empty]')?.remove();
}

function tell() {
  state.textContent = paused ? `paused, ${held.length.toLocaleString()} waiting` : 'live';
  hiddenText.textContent = hidden ? `${hidden.toLocaleString()} not shown` : '';
  pauseButton.textContent = paused ? 'Go on' : 'Pause';
  pauseButton.setAttribute('aria-pressed', String(paused));
}

function setPaused(value) {
  paused = value;
  if (!paused) {
    show(held);
    held = [];
  }
  tell();
}

pauseButton.addEventListener('click', () => { byScroll = false; setPaused(!paused); });
keys.set('.', () => { byScroll = false; setPaused(!paused); });
addEventListener('scroll', () => {
  if (scrollY > 120 && !paused) {
    byScroll = true;
    setPaused(true);
  } else if (scrollY < 20 && paused && byScroll) {
    byScroll = false;
    setPaused(false);
  }
}, { passive: true });

setInterval(() => {
  lookedAt = Date.now();
  const now = performance.now();
  seen = seen.filter(([at]) => now - at < 5000);
  const perSecond = seen.reduce((sum, [, count]) => sum + count, 0) / 5;
  rate.textContent = `${perSecond.toLocaleString(undefined, { maximumFractionDigits: 1 })} records/s`;
}, 1000);

// -- the connection

function lengthText(seconds) {
  if (seconds < 120) return `${Math.max(1, Math.round(seconds))} s`;
  return seconds < 7200 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}

// A line where records are missing, with a link to them.
function tellMissed(since, until) {
  const parameters = new URLSearchParams(location.search);
  parameters.set('since', since);
  parameters.set('until', until);
  const link = document.createElement('a');
  link.href = `/explore?${parameters}`;
  link.textContent = 'Explore';
  const row = document.createElement('tr');
  row.className = 'missed';
  const place = cell(row, '', `Not connected for ${lengthText((until - since) / 1000)}, since ${timeText(since, 'second')}. What came meanwhile is in `, link, '.');
  place.colSpan = table.tHead.rows[0].cells.length;
  body.prepend(row);
  document.querySelector('[data-empty]')?.remove();
}

function tellOver() {
  const link = document.createElement('a');
  link.href = `/login?next=${encodeURIComponent(location.pathname + location.search)}`;
  link.textContent = 'log in again';
  state.replaceChildren('logged out: ', link);
}

function connect() {
  const source = new EventSource(table.dataset.live);
  source.addEventListener('open', () => {
    if (lostAt !== null) {
      tellMissed(lostAt, Date.now());
      notice('Connected again.');
      lostAt = null;
    }
    tell();
  });
  source.addEventListener('rows', (event) => {
    const message = JSON.parse(event.data);
    seen.push([performance.now(), message.count]);
    hidden += message.hidden;
    if (paused) {
      held.push(...message.rows);
      if (held.length > HELD) {
        hidden += held.length - HELD;
        held = held.slice(-HELD);
      }
    } else {
      show(message.rows);
    }
    tell();
  });
  source.addEventListener('over', () => {
    source.close();
    tellOver();
  });
  source.addEventListener('error', () => {
    lostAt ??= lookedAt;
    state.textContent = 'connection lost, trying again …';
    // The browser gives up if there is an answer, but not this one.
    if (source.readyState === EventSource.CLOSED) setTimeout(connectAgain, RETRY);
  });
}

async function connectAgain() {
  try {
    const answer = await fetch(location.href, { method: 'HEAD', redirect: 'manual' });
    if (answer.type === 'opaqueredirect') {
      tellOver();
      return;
    }
    if (answer.ok) {
      connect();
      return;
    }
  } catch { /* nobody answers */ }
  setTimeout(connectAgain, RETRY);
}

if (table.dataset.live) connect();
