// Records by time and level as bars; drag over them to look closer.

import { timeText } from 'hyperlog/panel.js';

const SVG = 'http://www.w3.org/2000/svg';
const LEVELS = [[5, 'trace'], [10, 'debug'], [20, 'info'], [30, 'warning'], [40, 'error'], [50, 'critical']];
const AXIS = 14; // px below the bars

function make(name, attributes, parent) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  parent?.append(element);
  return element;
}

// `zoomed(since, until)` is called with ms when a range was chosen.
export function draw(element, { since, until, step, bins }, zoomed) {
  const width = element.clientWidth;
  const height = element.clientHeight - AXIS;
  const start = Math.floor(since / step) * step;
  const count = Math.max(1, Math.ceil((until - start) / step));
  const slot = width / count;
  const sums = bins.map(([, counts]) => Object.values(counts).reduce((a, b) => a + b, 0));
  const highest = Math.max(1, ...sums);
  const total = sums.reduce((a, b) => a + b, 0);
  const svg = make('svg', { role: 'img', viewBox: `0 0 ${width} ${height + AXIS}` });
  make('title', {}, svg).textContent = `${total.toLocaleString()} records from ${timeText(since, 'second')} to ${timeText(until, 'second')}`;
  make('line', { class: 'axis-line', x1: 0, x2: width, y1: height + 0.5, y2: height + 0.5 }, svg);
  for (const [at, counts] of bins) {
    const x = ((at - start) / step) * slot;
    let y = height;
    for (const [level] of LEVELS) {
      const part = counts[level];
      if (!part) continue;
      const tall = Math.max(1, (part / highest) * (height - 2));
      y -= tall;
      make('rect', { class: `fill-${level}`, x, y, width: Math.max(1, slot - (slot > 4 ? 1 : 0)), height: tall }, svg);
    }
  }
  const ticks = Math.max(2, Math.min(8, Math.floor(width / 140)));
  for (let tick = 0; tick <= ticks; tick += 1) {
    const at = start + (tick / ticks) * count * step;
    const text = make('text', {
      class: 'axis', y: height + AXIS - 3, x: (tick / ticks) * width,
      'text-anchor': tick === 0 ? 'start' : tick === ticks ? 'end' : 'middle',
    }, svg);
    const full = timeText(at, 'second');
    text.textContent = step >= 3600000 || until - since > 86400000 ? full.slice(5, 16) : full.slice(11, 19);
  }
  const tip = document.createElement('div');
  tip.className = 'chart-tip data';
  tip.hidden = true;
  element.replaceChildren(svg, tip);

  const byStart = new Map(bins);
  let from = null;
  let selection = null;
  const place = (event) => Math.min(width, Math.max(0, event.clientX - element.getBoundingClientRect().left));
  const timeAt = (x) => start + (x / slot) * step;
  svg.addEventListener('pointerdown', (event) => {
    if (event.button !== 0) return;
    from = place(event);
    svg.setPointerCapture(event.pointerId);
    selection = make('rect', { class: 'selection', x: from, y: 0, width: 0, height }, svg);
  });
  svg.addEventListener('pointermove', (event) => {
    const x = place(event);
    if (from !== null) {
      selection.setAttribute('x', Math.min(from, x));
      selection.setAttribute('width', Math.abs(x - from));
    }
    const at = start + Math.floor(x / slot) * step;
    const counts = byStart.get(at);
    tip.hidden = false;
    tip.textContent = `${timeText(at, 'second')}  ${LEVELS.filter(([level]) => counts?.[level]).map(([level, name]) => `${name} ${counts[level].toLocaleString()}`).join('  ') || 'none'}`;
    tip.style.left = `${Math.min(x + 8, Math.max(0, width - tip.offsetWidth))}px`;
  });
  svg.addEventListener('pointerleave', () => { tip.hidden = true; });
  svg.addEventListener('pointerup', (event) => {
    const to = place(event);
    if (from !== null && Math.abs(to - from) > 4) {
      zoomed(Math.floor(timeAt(Math.min(from, to))), Math.ceil(timeAt(Math.max(from, to))));
    } else if (from !== null) {
      const at = start + Math.floor(to / slot) * step;
      zoomed(at, at + step);
    }
    from = null;
    selection?.remove();
  });
}
