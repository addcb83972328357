// Turns the start page into Explore as soon as a record is there.

import { ask } from 'hyperlog/panel.js';

const page = document.querySelector('[data-first]').dataset;
const source = new EventSource(page.first);
const wait = document.querySelector('[data-wait]');

async function look() {
  // It was heard of before it is in the store; and one may have come before this page listened.
  try {
    if ((await ask(page.look)).includes('data-id')) {
      source.close();
      location.assign('/explore?since=all');
      return true;
    }
  } catch { /* the next look may tell more */ }
  return false;
}

source.addEventListener('rows', () => {
  wait.textContent = 'A record has arrived …';
  let tries = 0;
  const again = async () => { if (!(await look()) && (tries += 1) < 40) setTimeout(again, 250); };
  again();
}, { once: true });
look();
