// The open document: a drawer over the page. A button of class `opens` opens what its value names, wherever it stands.
let opener = null;

const show = () => {
  const reader = element.querySelector('.reader');
  if (!reader) return;
  element.dataset.shown = '';
  reader.querySelector('.close').focus({ preventScroll: true });
  const mark = reader.querySelector('mark');
  const body = reader.querySelector('.body');
  if (mark) mark.scrollIntoView({ block: 'center', inline: 'nearest' });
  else body.scrollTop = 0;
};

const hide = () => {
  if (element.dataset.shown === undefined) return;
  delete element.dataset.shown;
  if (opener && opener.isConnected) opener.focus({ preventScroll: true });
};

const onClick = (event) => {
  if (!element.isConnected) {
    document.removeEventListener('click', onClick);
    return;
  }
  const button = event.target.closest('button.opens');
  if (button) {
    opener = button;
    trigger('open_document', { place: button.value });
  } else if (event.target.closest('[data-close]')) {
    hide();
  }
};

document.addEventListener('click', onClick);
document.addEventListener('keydown', (event) => {
  if (event.key === 'Escape') hide();
});
watch('value', () => requestAnimationFrame(show));
