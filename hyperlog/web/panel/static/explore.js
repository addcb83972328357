// Explore: what the page asks for after it is there, records that open, and keys.

import { ask, copy, fill, keys, localTimes, notice } from 'hyperlog/panel.js';
import { draw } from 'hyperlog/histogram.js';
import { parse, tree } from 'hyperlog/tree.js';

const address = () => new URL(location.href);

// -- a record that opens

let menu = null;
function closeMenu() {
  menu?.remove();
  menu = null;
}
document.addEventListener('click', (event) => {
  if (menu && !menu.contains(event.target) && !event.target.closest('.tree .value')) closeMenu();
});
document.addEventListener('keydown', (event) => { if (event.key === 'Escape') closeMenu(); });

function refined(field, value, kind, exclude) {
  const parameters = new URLSearchParams(location.pathname.startsWith('/record') ? '' : location.search);
  parameters.set('field', field);
  parameters.set('value', value);
  parameters.set('kind', kind);
  if (exclude) parameters.set('exclude', '1');
  if (location.pathname === '/live') parameters.set('page', 'live');
  return `/explore/refine?${parameters}`;
}

function pinned(field) {
  const next = location.pathname.startsWith('/record') ? new URL('/explore', location.origin) : address();
  const columns = (next.searchParams.get('columns') || '').split(',').filter(Boolean);
  next.searchParams.set('columns', (columns.includes(field) ? columns.filter((one) => one !== field) : [...columns, field]).join(','));
  return next;
}

function choose(field, value, kind, button) {
  closeMenu();
  menu = document.createElement('div');
  menu.className = 'choose';
  menu.setAttribute('role', 'menu');
  const link = (text, href) => {
    const item = document.createElement('a');
    item.textContent = text;
    item.href = href;
    item.setAttribute('role', 'menuitem');
    menu.append(item);
  };
  link('Only this value', refined(field, value, kind, false));
  link('Without this value', refined(field, value, kind, true));
  link('Pin as a column', pinned(field));
  const item = document.createElement('button');
  item.textContent = 'Copy';
  item.setAttribute('role', 'menuitem');
  item.addEventListener('click', () => { copy(value); closeMenu(); });
  menu.append(item);
  const box = button.getBoundingClientRect();
  menu.style.left = `${Math.max(4, Math.min(box.left + scrollX, innerWidth - 190))}px`;
  menu.style.top = `${box.bottom + scrollY}px`;
  document.body.append(menu);
  menu.firstChild.focus();
}

export async function showRecord(element, id) {
  let text;
  try {
    text = await ask(`/record/${encodeURIComponent(id)}/body`, { as: 'text' });
  } catch (error) {
    element.textContent = error.message;
    return;
  }
  const actions = document.createElement('div');
  actions.className = 'row';
  const raw = document.createElement('button');
  raw.textContent = 'Copy JSON';
  raw.addEventListener('click', () => copy(text));
  const link = document.createElement('a');
  link.textContent = 'Link to this record';
  link.href = `/record/${encodeURIComponent(id)}`;
  actions.append(raw, link);
  const context = document.createElement('button');
  context.textContent = 'What came around it';
  const around = document.createElement('div');
  context.addEventListener('click', async () => {
    try {
      fill(around, await ask(`/record/${encodeURIComponent(id)}/around${location.search}`));
      current(around, id);
    } catch (error) { notice(error.message); }
  });
  if (!element.closest('[data-record]')) actions.append(context);
  element.replaceChildren(tree(parse(text), choose), actions, around);
}

function current(root, id) {
  root.querySelector(`[data-id="${CSS.escape(id)}"]`)?.classList.add('current');
}

export function toggle(row) {
  const opened = row.getAttribute('aria-expanded') === 'true';
  row.setAttribute('aria-expanded', String(!opened));
  if (opened) {
    // In Live it may have gone below the last row that is kept.
    row.nextElementSibling?.remove();
    return;
  }
  const detail = document.createElement('tr');
  detail.className = 'opened';
  const cell = document.createElement('td');
  cell.colSpan = row.children.length;
  cell.className = 'detail';
  cell.textContent = '…';
  detail.append(cell);
  row.after(detail);
  showRecord(cell, row.dataset.id);
}

document.addEventListener('click', (event) => {
  const row = event.target.closest('tr.record');
  if (!row || event.target.closest('a, button, .opened > td .tree') || String(getSelection())) return;
  toggle(row);
  row.focus({ preventScroll: true });
});

// -- words that were searched for

const body = document.querySelector('[data-words]');
const words = body ? JSON.parse(body.dataset.words) : [];
const pattern = words.length ? new RegExp(words.map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')).join('|'), 'giu') : null;

export function mark(root) {
  if (!pattern) return;
  for (const element of root.querySelectorAll('.rest bdi')) {
    const text = element.textContent;
    const parts = [];
    let end = 0;
    for (const found of text.matchAll(pattern)) {
      const marked = document.createElement('mark');
      marked.textContent = found[0];
      parts.push(text.slice(end, found.index), marked);
      end = found.index + found[0].length;
      if (parts.length > 40) break;
    }
    if (parts.length) element.replaceChildren(...parts, text.slice(end));
  }
}

// -- more rows

const table = document.querySelector('table[data-rows]');
const more = document.querySelector('[data-more]');
let asking = false;

async function nextPage() {
  const last = table.querySelector('tr.cursor');
  if (asking || !last) return;
  asking = true;
  more.textContent = 'More …';
  try {
    const url = new URL(table.dataset.rows, location.origin);
    url.searchParams.set('cursor', last.dataset.cursor);
    const template = document.createElement('template');
    template.innerHTML = await ask(url);
    localTimes(template.content);
    mark(template.content);
    last.remove();
    table.tBodies[0].append(template.content);
    more.textContent = '';
    if (table.querySelector('tr.cursor')) watch();
  } catch (error) {
    watcher.disconnect(); // or it would ask again at once, and again
    more.textContent = `${error.message} `;
    const again = document.createElement('button');
    again.textContent = 'Try again';
    again.addEventListener('click', nextPage);
    more.append(again);
  }
  asking = false;
}

let watcher = null;
function watch() {
  watcher?.disconnect();
  watcher = new IntersectionObserver((seen) => { if (seen.some((one) => one.isIntersecting)) nextPage(); }, { rootMargin: '800px' });
  watcher.observe(more);
}

if (table) {
  mark(table);
  if (table.querySelector('tr.cursor')) watch();
}

// -- histogram and facets

const plot = document.querySelector('[data-histogram]');
let answer = null;

function zoom(since, until) {
  const next = address();
  next.searchParams.set('since', since);
  next.searchParams.set('until', until);
  location.assign(next);
}

async function loadHistogram() {
  try {
    answer = await ask(plot.dataset.histogram, { as: 'json' });
  } catch (error) {
    plot.textContent = error.status === 400 ? '' : error.message;
    return;
  }
  draw(plot, answer, zoom);
  document.querySelector('[data-total]').textContent = `${answer.total.toLocaleString()} records`;
}

async function loadFacet(section) {
  try {
    fill(section, await ask(section.dataset.facet));
  } catch (error) {
    section.querySelector('p').textContent = error.status === 400 ? '' : error.message;
  }
}

if (plot) {
  loadHistogram();
  new ResizeObserver(() => { if (answer) draw(plot, answer, zoom); }).observe(plot);
  const sections = [...document.querySelectorAll('[data-facet]')];
  sections.reduce((before, section) => before.then(() => loadFacet(section)), Promise.resolve());
  if (matchMedia('(max-width: 720px)').matches) document.querySelector('.facets').open = false;
}

document.querySelector('[data-add-facet]')?.addEventListener('submit', (event) => {
  event.preventDefault();
  const form = event.target;
  const field = form.elements.field.value.trim();
  if (!field) return;
  const section = document.createElement('section');
  const url = new URL(form.dataset.addFacet, location.origin);
  url.searchParams.set('field', field);
  section.dataset.facet = url.pathname + url.search;
  section.innerHTML = '<p class="none">…</p>';
  form.before(section);
  loadFacet(section);
  form.reset();
});

document.addEventListener('click', (event) => {
  event.target.closest('[data-close-facet]')?.closest('section').remove();
  const opener = event.target.closest('[data-open]');
  if (opener) document.querySelector(opener.dataset.open).showModal();
});

// -- the range of time

document.querySelector('[data-range]')?.addEventListener('change', (event) => {
  const select = event.target;
  const form = select.form;
  form.querySelector('input[name=until]')?.remove();
  const option = select.selectedOptions[0];
  if (option.dataset.custom !== undefined) {
    for (const [name, label, value] of [['since', 'From', '1h'], ['until', 'To', '']]) {
      const box = document.createElement('label');
      box.className = 'row';
      const input = document.createElement('input');
      Object.assign(input, { name, value, size: 20, title: 'like 2h, 7d, 2026-11-20T14:05Z' });
      box.append(label, input);
      select.closest('label').before(box);
    }
    select.closest('label').remove();
    form.querySelector('input[name=since]').select();
  } else {
    form.requestSubmit();
  }
});

// Empty fields make long addresses.
document.querySelector('form.query')?.addEventListener('formdata', (event) => {
  for (const [name, value] of [...event.formData]) if (!value) event.formData.delete(name);
});

// -- keys

function move(by) {
  const rows = [...document.querySelectorAll('table.records:not(.inner) > tbody > tr.record')];
  if (!rows.length) return;
  const at = rows.indexOf(document.activeElement.closest?.('tr.record'));
  const next = rows[Math.min(rows.length - 1, Math.max(0, at + by))];
  next.focus();
  next.scrollIntoView({ block: 'nearest' });
}
keys.set('j', () => move(1));
keys.set('k', () => move(-1));
keys.set('Enter', (event) => {
  const row = event.target.closest('tr.record');
  if (row) toggle(row);
});
keys.set('x', (event) => {
  const row = event.target.closest('tr.record');
  if (!row) return;
  const message = row.querySelector('.rest').textContent.trim();
  location.assign(refined('message', message, 'string', true));
});

const single = document.querySelector('[data-record]');
if (single) {
  showRecord(single, single.dataset.record);
  current(document, single.dataset.record);
}
