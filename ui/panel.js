// Buttons of a list: `data-act` names the event to trigger; a row asks once more before it deletes.
const EVENTS = ['open_thread', 'delete_thread', 'delete_document'];

element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-act]');
  if (!button) return;
  const row = button.closest('[data-row]');
  const act = button.dataset.act;
  if (act === 'confirm') {
    row.dataset.asking = '';
    row.querySelector('[data-act^="delete"]').focus();
  } else if (act === 'keep') {
    delete row.dataset.asking;
    row.querySelector('.remove').focus();
  } else if (EVENTS.includes(act)) {
    trigger(act, { id: button.dataset.id });
  }
});
