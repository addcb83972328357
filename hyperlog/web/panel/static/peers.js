// Peers: two graphs of what traces tell, with a slider over their time. The same as a table below,
// for those who do not see the drawing.

import { ask, timeText } from 'hyperlog/panel.js';

const SVG = 'http://www.w3.org/2000/svg';
const MAX_NODES = 300; // drawn; the time for it grows with their square
const box = document.querySelector('[data-graph]');
const svg = box.querySelector('svg');
const empty = box.querySelector('[data-empty]');
const replay = document.querySelector('[data-replay]');
const slider = document.querySelector('[data-slider]');
const at = document.querySelector('[data-at]');
const play = document.querySelector('[data-play]');
const list = document.querySelector('[data-list]');

function make(name, attributes, parent, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  parent?.append(element);
  return element;
}

const shorten = (text) => (text.length > 28 ? `${text.slice(0, 27)}…` : text);
const keyName = (key) => `${key.slice(0, 8)}…`;

// Nodes push each other away, edges pull; a fixed number of rounds from a fixed start, so that the
// same graph always looks the same. Positions are kept over time: what stays does not jump.
function layout(names, edges, kept, width, height) {
  const nodes = names.map((name, index) => {
    const old = kept.get(name);
    const angle = (index / names.length) * 2 * Math.PI;
    return old ? { ...old, name } : { name, x: width / 2 + Math.cos(angle) * width * 0.32, y: height / 2 + Math.sin(angle) * height * 0.36 };
  });
  const byName = new Map(nodes.map((node) => [node.name, node]));
  const ideal = Math.min(180, Math.sqrt((width * height) / Math.max(1, nodes.length)) * 0.6);
  const rounds = nodes.length > 150 ? 40 : 150;
  for (let round = 0; round < rounds; round += 1) {
    const heat = ideal * 0.4 * (1 - round / rounds);
    for (const node of nodes) { node.dx = (width / 2 - node.x) * 0.1; node.dy = (height / 2 - node.y) * 0.25; }
    for (let i = 0; i < nodes.length; i += 1) {
      for (let j = i + 1; j < nodes.length; j += 1) {
        const x = nodes[i].x - nodes[j].x || 0.1 * (i - j);
        const y = nodes[i].y - nodes[j].y || 0.1;
        const force = (0.3 * ideal * ideal) / Math.max(25, x * x + y * y);
        nodes[i].dx += x * force; nodes[i].dy += y * force;
        nodes[j].dx -= x * force; nodes[j].dy -= y * force;
      }
    }
    for (const [from, to] of edges) {
      const a = byName.get(from);
      const b = byName.get(to);
      if (!a || !b || a === b) continue;
      const x = b.x - a.x;
      const y = b.y - a.y;
      const pull = (Math.hypot(x, y) / ideal) * 0.05;
      a.dx += x * pull; a.dy += y * pull;
      b.dx -= x * pull; b.dy -= y * pull;
    }
    for (const node of nodes) {
      const far = Math.hypot(node.dx, node.dy) || 1;
      const step = Math.min(far, heat);
      node.x = Math.min(width - 90, Math.max(90, node.x + (node.dx / far) * step));
      node.y = Math.min(height - 30, Math.max(24, node.y + (node.dy / far) * step));
    }
  }
  for (const node of nodes) kept.set(node.name, { x: node.x, y: node.y });
  return byName;
}

const kept = new Map();

// Of too many nodes those with the most edges.
function most(nodes, edges) {
  if (nodes.size <= MAX_NODES) return nodes;
  const counts = new Map([...nodes.keys()].map((name) => [name, 0]));
  for (const [from, to] of edges) {
    counts.set(from, counts.get(from) + 1);
    counts.set(to, counts.get(to) + 1);
  }
  const names = [...nodes.keys()].sort((a, b) => counts.get(b) - counts.get(a));
  return new Map(names.slice(0, MAX_NODES).map((name) => [name, nodes.get(name)]));
}

// Returns how many nodes had no room.
// edges: [from, to, {label, both, weight}], nodes: Map of name to {label, detail, weight}
function draw(all, edges) {
  const nodes = most(all, edges);
  const width = Math.max(320, box.clientWidth);
  const height = Math.max(320, Math.min(620, innerHeight - 300));
  svg.setAttribute('viewBox', `0 0 ${width} ${height}`);
  svg.style.height = `${height}px`;
  const places = layout([...nodes.keys()], edges, kept, width, height);
  const title = svg.querySelector('title');
  svg.replaceChildren(title);
  const defs = make('defs', {}, svg);
  const arrow = make('marker', { id: 'arrow', viewBox: '0 0 8 8', refX: 8, refY: 4, markerWidth: 7, markerHeight: 7, orient: 'auto-start-reverse' }, defs);
  make('path', { d: 'M0 0L8 4L0 8z', class: 'arrow' }, arrow);
  for (const [from, to, { both, weight = 1, detail }] of edges) {
    const a = places.get(from);
    const b = places.get(to);
    if (!a || !b) continue;
    const far = Math.hypot(b.x - a.x, b.y - a.y);
    const cut = far > 40 ? 16 / far : 0;
    const line = a === b
      ? make('path', { d: `M${a.x - 5} ${a.y - 10}C${a.x - 40} ${a.y - 55} ${a.x + 40} ${a.y - 55} ${a.x + 5} ${a.y - 10}` }, svg)
      : make('line', { x1: a.x + (b.x - a.x) * cut, y1: a.y + (b.y - a.y) * cut, x2: b.x - (b.x - a.x) * cut, y2: b.y - (b.y - a.y) * cut }, svg);
    line.setAttribute('class', both ? 'edge both' : 'edge');
    line.setAttribute('stroke-width', Math.min(5, 1 + Math.log10(weight)));
    if (!both) line.setAttribute('marker-end', 'url(#arrow)');
    if (detail) make('title', {}, line, detail);
  }
  for (const [name, { label, detail, weight = 1, dim }] of nodes) {
    const place = places.get(name);
    const group = make('g', { class: dim ? 'node dim' : 'node' }, svg);
    make('circle', { cx: place.x, cy: place.y, r: Math.min(14, 6 + 2 * Math.log10(weight)) }, group);
    make('text', { x: place.x, y: place.y + 24, 'text-anchor': 'middle' }, group, shorten(label));
    make('title', {}, group, detail || label);
  }
  return all.size - nodes.size;
}

function table(head, rows) {
  list.hidden = rows.length === 0;
  const line = (cells, tag) => {
    const row = document.createElement('tr');
    for (const text of cells) {
      const cell = document.createElement(tag);
      const inner = document.createElement('bdi');
      inner.textContent = text;
      cell.append(inner);
      if (tag === 'td') cell.className = 'data';
      else cell.scope = 'col';
      row.append(cell);
    }
    return row;
  };
  list.tHead.replaceChildren(line(head, 'th'));
  list.tBodies[0].replaceChildren(...rows.slice(0, 200).map((cells) => line(cells, 'td')));
}

// -- connections of peers

function peersAt(events, count) {
  const owners = new Map(); // public key -> who
  const open = new Map(); // own key, remote key -> count
  for (const [, id, who, own, remote] of events.slice(0, count)) {
    owners.set(own, who);
    if (id === 'listen') continue;
    const edge = `${own}\n${remote}`;
    const now = (open.get(edge) || 0) + (id === 'stream-open' ? 1 : -1);
    if (now > 0) open.set(edge, now);
    else open.delete(edge);
  }
  return { owners, open };
}

function showPeers({ events }, position) {
  const { owners, open } = peersAt(events, position);
  const nodes = new Map();
  const nodeOf = (key) => {
    const who = owners.get(key);
    const name = who ? `w ${who}` : `k ${key}`;
    if (!nodes.has(name)) nodes.set(name, { label: who || keyName(key), detail: who ? who : key, dim: !who });
    return name;
  };
  for (const key of owners.keys()) nodeOf(key);
  const edges = new Map();
  for (const edge of open.keys()) {
    const [own, remote] = edge.split('\n');
    edges.set(`${nodeOf(own)}\n${nodeOf(remote)}`, true);
  }
  const drawn = [];
  for (const edge of edges.keys()) {
    const [from, to] = edge.split('\n');
    const back = edges.has(`${to}\n${from}`);
    if (back && from > to) continue;
    drawn.push([from, to, { both: back }]);
  }
  const left = draw(nodes, drawn);
  table(['From', '', 'To'], drawn.map(([from, to, { both }]) => [nodes.get(from).label, both ? '↔' : '→', nodes.get(to).label]));
  const event = events[position - 1];
  at.textContent = event ? `${timeText(event[0], 'second')}  ${event[1]} ${event[2]}${event[5] ? ` (${event[5]})` : ''}  ${drawn.length} connections${left ? `, ${left.toLocaleString()} peers not drawn` : ''}` : '';
}

// -- classes and calls

function showCalls({ classes, steps }, position) {
  const calls = new Map();
  const edges = new Map();
  for (const step of steps.slice(0, position)) {
    for (const [number, name, count] of step.calls) {
      const functions = calls.get(number) || new Map();
      functions.set(name, (functions.get(name) || 0) + count);
      calls.set(number, functions);
    }
    for (const [parent, number, count] of step.edges) {
      const edge = `${parent} ${number}`;
      edges.set(edge, (edges.get(edge) || 0) + count);
    }
  }
  const nodes = new Map();
  const add = (number) => {
    const functions = [...(calls.get(number) || [])].sort((a, b) => b[1] - a[1]);
    const total = functions.reduce((sum, [, count]) => sum + count, 0);
    nodes.set(number, {
      label: `${classes[number]} ${total.toLocaleString()}`,
      detail: functions.slice(0, 20).map(([name, count]) => `${name} ${count.toLocaleString()}`).join('\n') || classes[number],
      weight: Math.max(1, total), dim: !total,
    });
  };
  for (const number of calls.keys()) add(number);
  const drawn = [...edges].map(([edge, count]) => {
    const [parent, number] = edge.split(' ').map(Number);
    if (!nodes.has(parent)) add(parent);
    return [parent, number, { weight: count, detail: `${classes[parent]} → ${classes[number]}: ${count.toLocaleString()}` }];
  });
  draw(nodes, drawn);
  const rows = [...calls].flatMap(([number, functions]) => [...functions].map(([name, count]) => [classes[number], name, count]));
  rows.sort((a, b) => b[2] - a[2]);
  table(['Class', 'Function', 'Calls'], rows.map(([name, called, count]) => [name, called, count.toLocaleString()]));
  const step = steps[position - 1];
  at.textContent = step ? `until ${timeText(step.until, 'second')}` : '';
}

// -- the slider

let answer;
const shown = box.dataset.shown;
function show() {
  (shown === 'peers' ? showPeers : showCalls)(answer, Number(slider.value));
}

let timer = null;
function setPlaying(value) {
  clearInterval(timer);
  timer = null;
  play.textContent = value ? 'Stop' : 'Play';
  play.setAttribute('aria-pressed', String(value));
  if (!value) return;
  if (slider.value === slider.max) slider.value = 0;
  const step = Math.max(1, Math.round(slider.max / 200));
  timer = setInterval(() => {
    slider.value = Number(slider.value) + step;
    show();
    if (slider.value === slider.max) setPlaying(false);
  }, 120);
}

slider.addEventListener('input', show);
play.addEventListener('click', () => setPlaying(timer === null));
for (const select of document.querySelectorAll('[data-submit]')) select.addEventListener('change', () => select.form.requestSubmit());
document.querySelector('[data-range]').addEventListener('change', (event) => {
  event.target.form.querySelector('input[name=until]')?.remove();
  if (event.target.selectedOptions[0].dataset.custom === undefined) event.target.form.requestSubmit();
});
addEventListener('resize', () => { if (answer) { kept.clear(); show(); } });

try {
  answer = await ask(box.dataset.graph, { as: 'json' });
  const count = shown === 'peers' ? answer.events.length : answer.steps.length;
  if (count) {
    empty.textContent = answer.more ? 'Only the newest records are looked at (20,000, or 64 MiB of them): choose a shorter time for the others.' : '';
    slider.max = count;
    slider.value = count;
    replay.hidden = false;
    show();
  } else {
    svg.remove();
    empty.textContent = shown === 'peers'
      ? 'No traces with the ids listen, stream-open and stream-close in this time.'
      : 'No traces in this time.';
  }
} catch (error) {
  empty.textContent = error.message;
}
