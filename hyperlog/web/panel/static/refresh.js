// Keeps a part of a page up to date: data-refresh names where it comes from, data-every the seconds.

import { ask, fill } from 'hyperlog/panel.js';

for (const element of document.querySelectorAll('[data-refresh]')) {
  const every = Number(element.dataset.every) * 1000;
  const again = async () => {
    const busy = document.hidden || element.contains(document.activeElement) || String(getSelection());
    if (!busy) {
      try {
        const html = await ask(element.dataset.refresh);
        // Not under the hand of whoever has begun to use it meanwhile.
        if (!element.contains(document.activeElement)) fill(element, html);
        element.removeAttribute('aria-busy');
      } catch {
        element.setAttribute('aria-busy', 'true');
      }
    }
    setTimeout(again, every);
  };
  setTimeout(again, every);
}
