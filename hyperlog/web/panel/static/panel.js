// What every page has: times in the zone of whoever looks, keys, notices, the set-up form.

export const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;

const formats = {
  time: { hour: '2-digit', minute: '2-digit', second: '2-digit', fractionalSecondDigits: 3, hour12: false },
  second: { year: 'numeric', month: '2-digit', day: '2-digit', hour: '2-digit', minute: '2-digit', second: '2-digit', hour12: false },
  date: { year: 'numeric', month: '2-digit', day: '2-digit' },
};
const writers = new Map();

// Text of a Date (or of milliseconds since 1970) in one of the styles above, or 'ago'. A `time` of
// another day than today has its day before it.
export function timeText(date, style = 'time') {
  date = new Date(date);
  if (Number.isNaN(date.getTime())) return '–';
  if (style === 'ago') return agoText((Date.now() - date) / 1000);
  const text = writer(style).format(date).replace(',', '.');
  if (style !== 'time' || date.toDateString() === new Date().toDateString()) return text;
  return `${writer('date').format(date).slice(5)} ${text}`;
}

function writer(style) {
  if (!writers.has(style)) writers.set(style, new Intl.DateTimeFormat('sv-SE', formats[style]));
  return writers.get(style);
}

function agoText(seconds) {
  if (seconds < 2) return 'now';
  for (const [unit, length] of [['d', 86400], ['h', 3600], ['min', 60]]) {
    if (seconds >= length) return `${Math.floor(seconds / length)} ${unit} ago`;
  }
  return `${Math.floor(seconds)} s ago`;
}

// Show the times inside an element; pages call it for what they add.
export function localTimes(root) {
  for (const element of root.querySelectorAll('time[datetime]')) {
    element.textContent = timeText(element.getAttribute('datetime'), element.dataset.style);
  }
}

let noticeTimer;
// Tell something in the corner for some seconds; screen readers hear it too.
export function notice(text) {
  const element = document.getElementById('notice');
  element.textContent = text;
  clearTimeout(noticeTimer);
  noticeTimer = setTimeout(() => { element.textContent = ''; }, 6000);
}

// Copy text; where the page may not, say so.
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    notice('Copied.');
  } catch {
    notice('This browser does not let pages copy here: select the text instead.');
  }
}

// fetch() that ends in a useful error: {status, detail}. `body` is an object of form fields.
export async function ask(path, { body, signal, as = 'text' } = {}) {
  const options = { signal, headers: { Accept: as === 'json' ? 'application/json' : 'text/html' } };
  if (body) {
    options.method = 'POST';
    options.body = new URLSearchParams(body);
  }
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw Object.assign(new Error('The server does not answer.'), { status: 0 });
  }
  if (answer.status === 401) {
    location.assign(`/login?next=${encodeURIComponent(location.pathname + location.search)}`);
    throw Object.assign(new Error('Logged out.'), { status: 401 });
  }
  if (!answer.ok) {
    let problem = {};
    try { problem = await answer.json(); } catch { /* an error page */ }
    throw Object.assign(new Error(problem.detail || `The server answered ${answer.status}.`), { status: answer.status, problem });
  }
  return as === 'json' ? answer.json() : answer.text();
}

// Put HTML of the server into an element. It is made from templates that escape all data.
export function fill(element, html) {
  const template = document.createElement('template');
  template.innerHTML = html;
  localTimes(template.content);
  element.replaceChildren(template.content);
}

// -- keys. A page adds its own: keys.set('j', handler).

export const keys = new Map();
let goAt = 0;

function typing(target) {
  return target.isContentEditable || ['INPUT', 'TEXTAREA', 'SELECT'].includes(target.tagName);
}

document.addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (typing(event.target)) {
    if (event.key === 'Escape') event.target.blur();
    return;
  }
  if (document.querySelector('dialog[open]')) return;
  if (event.timeStamp - goAt < 1500) {
    goAt = 0;
    const link = document.querySelector(`nav a[data-key="${CSS.escape(event.key)}"]`);
    if (link) {
      event.preventDefault();
      link.click();
      return;
    }
  }
  if (event.key === 'g') {
    goAt = event.timeStamp;
  } else if (event.key === '?') {
    event.preventDefault();
    document.getElementById('help').showModal();
  } else if (event.key === '/') {
    const search = document.querySelector('[data-search]');
    if (search) {
      event.preventDefault();
      search.focus();
      search.select?.();
    }
  } else {
    keys.get(event.key)?.(event);
  }
});

document.addEventListener('click', (event) => {
  const button = event.target.closest('[data-copy]');
  if (button) copy(document.querySelector(button.dataset.copy).textContent.trim());
  const confirmed = event.target.closest('[data-confirm]');
  if (confirmed && !window.confirm(confirmed.dataset.confirm)) event.preventDefault();
});

localTimes(document);

// On a phone the pages are more than fit.
const here = document.querySelector('nav a[aria-current]');
if (here) here.parentElement.scrollLeft = here.offsetLeft + here.offsetWidth - here.parentElement.offsetLeft - here.parentElement.clientWidth;

const setup = document.querySelector('[data-setup]');
if (setup && location.hash.length > 1) {
  // The secret of the link never reaches a log: browsers do not send what is after #.
  setup.elements.secret.value = decodeURIComponent(location.hash.slice(1));
  history.replaceState(null, '', location.pathname);
  setup.elements.name.focus();
}
