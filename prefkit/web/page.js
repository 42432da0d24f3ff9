// Runs once when the page's gr.HTML appears: `element` is it, `trigger` calls Python, `watch` says a new screen is drawn.
const KEYS = { 1: 'a', 2: 'b', t: 'tie', s: 'skip', u: 'undo' };
const PATIENCE_MS = 4000; // then say that the answer has not come, and let the key be pressed again

let busy = false;
let attempt = null; // the key pressed on this screen, with the id it was sent under: sent again, it is the same event
let since = performance.now();
let timer = null;

const screen = () => element.querySelector('.pk');

function uuid() { // crypto.randomUUID needs https
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (b) => b.toString(16).padStart(2, '0')).join('');
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5');
}

function act(choice) {
  const button = element.querySelector(`button[data-choice="${choice}"]`);
  if (busy || !button || button.disabled) return;
  const { view, item, shown } = screen().dataset;
  if (!attempt || attempt.view !== view || attempt.choice !== choice) attempt = { view, choice, id: uuid() };
  busy = true;
  element.classList.add('pk-busy');
  timer = setTimeout(() => {
    release();
    element.querySelector('.pk-said').textContent = 'Not saved yet: is the program still running? Press the key again.';
  }, PATIENCE_MS);
  if (choice === 'undo') trigger('undo', { id: attempt.id });
  else if (choice === 'end') trigger('end', {});
  else if (choice === 'back') trigger('back', {});
  else trigger('vote', { id: attempt.id, item, shown, choice, milliseconds: Math.round(performance.now() - since) });
}

function release() {
  busy = false;
  clearTimeout(timer);
  element.classList.remove('pk-busy');
}

watch('value', () => {
  release();
  since = performance.now();
  const end = element.querySelector('details.pk-end');
  if (end) end.open = false;
  window.scrollTo(0, 0);
});

element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-choice]');
  if (button) act(button.dataset.choice);
});

function onKey(event) {
  if (event.repeat || event.ctrlKey || event.altKey || event.metaKey || event.shiftKey || event.isComposing) return;
  const target = event.target;
  if (target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName)) return;
  // the digits by their place too: where they need Shift (AZERTY) the key alone says & or é
  const choice = KEYS[event.key.toLowerCase()] || KEYS[(/^(?:Digit|Numpad)([12])$/.exec(event.code) || [])[1]];
  if (!choice) return;
  event.preventDefault();
  act(choice);
}

document.removeEventListener('keydown', window.prefkitKeys); // drawn again: one listener only
window.prefkitKeys = onKey;
document.addEventListener('keydown', onKey);
