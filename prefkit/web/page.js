// Runs once when the page's gr.HTML appears: `element` is it, `trigger` calls Python, `watch` says a new screen is drawn.
const KEYS = { 1: 'a', 2: 'b', t: 'tie', s: 'skip', u: 'undo' };
// by their place, where the layout has other signs there: digits that need Shift (AZERTY), letters that are not Latin
const PLACES = { Digit1: 1, Numpad1: 1, Digit2: 2, Numpad2: 2, KeyT: 't', KeyS: 's', KeyU: 'u' };
const SETTLE_MS = 300; // what comes sooner after a new screen was meant for the one before: a key pressed twice
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
  if (busy || !button || button.disabled || performance.now() - since < SETTLE_MS) return;
  const { view, item, shown } = screen().dataset;
  if (!attempt || attempt.view !== view) attempt = { view, choice, id: uuid() };
  // a first choice may still arrive, and would then stand in place of a second one
  if (attempt.choice !== choice) return say('Another choice is not saved yet: press that key again, then undo.');
  busy = true;
  element.classList.add('pk-busy');
  say('');
  timer = setTimeout(() => {
    release();
    say('Not saved yet: is the program still running? Press the key again.');
  }, PATIENCE_MS);
  if (choice === 'undo') trigger('undo', { id: attempt.id });
  else if (choice === 'end') trigger('end', {});
  else if (choice === 'back') trigger('back', {});
  else trigger('vote', { id: attempt.id, item, shown, choice, milliseconds: Math.round(performance.now() - since) });
}

function say(words) {
  element.querySelector('.pk-said').textContent = words;
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
  if (event.repeat && event.target.closest?.('button[data-choice]')) event.preventDefault(); // Enter held on a button
  if (event.repeat || event.ctrlKey || event.altKey || event.metaKey || event.shiftKey || event.isComposing) return;
  const target = event.target;
  if (target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName)) return;
  const choice = KEYS[event.key.toLowerCase()] || (!/^[a-z]$/i.test(event.key) && KEYS[PLACES[event.code]]);
  if (!choice) return;
  event.preventDefault();
  act(choice);
}

document.removeEventListener('keydown', window.prefkitKeys); // drawn again: one listener only
window.prefkitKeys = onKey;
document.addEventListener('keydown', onKey);
