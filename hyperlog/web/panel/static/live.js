// Live: rows come in above, at most a few hundred are kept; scrolling down or a key stops them.

import { keys, timeText } from 'hyperlog/panel.js';
import { mark } from 'hyperlog/explore.js';

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
  const now = performance.now();
  seen = seen.filter(([at]) => now - at < 5000);
  const perSecond = seen.reduce((sum, [, count]) => sum + count, 0) / 5;
  rate.textContent = `${perSecond.toLocaleString(undefined, { maximumFractionDigits: 1 })} records/s`;
}, 1000);

if (table.dataset.live) {
  const source = new EventSource(table.dataset.live);
  source.addEventListener('open', tell);
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
    state.textContent = 'logged out: ';
    const link = document.createElement('a');
    link.href = `/login?next=${encodeURIComponent(location.pathname + location.search)}`;
    link.textContent = 'log in again';
    state.append(link);
  });
  source.addEventListener('error', () => {
    if (source.readyState === EventSource.CLOSED) {
      state.textContent = 'cut off: reload the page to go on';
    } else {
      state.textContent = 'connection lost, trying again …';
    }
  });
}
