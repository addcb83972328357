// A JSON value as a tree that opens bit by bit: a record may have 10,000 members in one object.

const PART = 100; // members shown at a time
const OPENED = 500; // members of containers that open by themselves, at one go
const LONG = 2000; // characters of a text shown at first

// Parse JSON so that no digit of a number is lost.
export function parse(text) {
  return JSON.parse(text, (key, value, context) => {
    const exact = typeof value !== 'number' || !context || context.source === undefined
      || String(value) === context.source;
    return exact ? value : new Big(context.source);
  });
}

class Big {
  constructor(source) { this.source = source; }
}

// The element for a value; `chosen(field, value, kind, button)` hears of a click on a scalar.
export function tree(value, chosen) {
  const root = document.createElement('ul');
  root.className = 'tree';
  addMembers(root, value, '', chosen, 0, { left: OPENED });
  return root;
}

function isContainer(value) {
  return typeof value === 'object' && value !== null && !(value instanceof Big);
}

function addMembers(list, container, path, chosen, start, room) {
  const isArray = Array.isArray(container);
  const names = isArray ? null : Object.keys(container);
  const count = isArray ? container.length : names.length;
  const end = Math.min(start + PART, count);
  for (let index = start; index < end; index += 1) {
    const name = isArray ? String(index) : names[index];
    // In arrays any item is meant: that is what one wants to find again.
    const field = isArray ? path : path ? `${path}.${name}` : name;
    list.append(member(name, container[name], field, chosen, room));
  }
  if (end < count) {
    const item = document.createElement('li');
    const more = document.createElement('button');
    more.textContent = `${(count - end).toLocaleString()} more`;
    more.addEventListener('click', () => {
      item.remove();
      addMembers(list, container, path, chosen, end, { left: OPENED });
    });
    item.append(more);
    list.append(item);
  }
}

function member(name, value, field, chosen, room) {
  const item = document.createElement('li');
  const label = document.createElement('bdi');
  label.className = 'name';
  label.textContent = name;
  if (!isContainer(value)) {
    item.append(label, ': ', scalar(value, field, chosen));
    return item;
  }
  const count = Array.isArray(value) ? value.length : Object.keys(value).length;
  const [open, close] = Array.isArray(value) ? '[]' : '{}';
  const toggle = document.createElement('button');
  toggle.className = 'toggle';
  toggle.setAttribute('aria-label', `${name}: ${count} members`);
  const summary = document.createElement('span');
  summary.className = 'none';
  const list = document.createElement('ul');
  const set = (opened, within) => {
    toggle.textContent = opened ? '▾' : '▸';
    toggle.setAttribute('aria-expanded', String(opened));
    summary.textContent = opened ? '' : `${open}${count ? '…' : ''}${close} ${count}`;
    list.hidden = !opened;
    if (opened && !list.children.length) addMembers(list, value, field, chosen, 0, within);
  };
  toggle.addEventListener('click', () => set(list.hidden, { left: OPENED }));
  item.append(toggle, label, ': ', summary, list);
  // Small ones open by themselves: how many these are is up to who sent the record.
  const opens = count > 0 && count <= 20 && count <= room.left && field.split('.').length < 4;
  if (opens) room.left -= count;
  set(opens, room);
  return item;
}

function scalar(value, field, chosen) {
  const button = document.createElement('button');
  let kind = typeof value;
  let text = String(value);
  if (value === null) kind = 'null';
  if (value instanceof Big) [kind, text] = ['number', value.source];
  button.className = `value ${kind === 'null' || kind === 'boolean' ? 'constant' : kind}`;
  const shown = text.length > LONG ? `${text.slice(0, LONG)}…` : text;
  const inner = document.createElement('bdi');
  inner.textContent = kind === 'string' ? shown || '""' : shown;
  button.append(inner);
  button.title = 'Filter by it, or copy it';
  button.addEventListener('click', () => {
    if (shown !== text && inner.textContent === shown) inner.textContent = text;
    chosen(field, text, kind, button);
  });
  return button;
}
