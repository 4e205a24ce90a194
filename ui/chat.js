// What Gradio's chat lacks: names a screen reader can read, and copying an answer with its sources.
const chat = document.querySelector('#chat-main');

// Gradio names every message by its HTML source; without that label a screen reader reads the message itself.
const unname = () => {
  chat.querySelectorAll('[data-testid="bot"], [data-testid="user"]').forEach((message) => {
    message.removeAttribute('aria-label');
  });
};
new MutationObserver(unname).observe(chat, { childList: true, subtree: true });

chat.addEventListener('click', async (event) => {
  const button = event.target.closest('button.copy');
  if (!button) return;
  const answer = button.closest('.answer');
  const sources = [...answer.querySelectorAll('.pill')].map(
    (pill) => `[${pill.querySelector('b').innerText}] ${pill.querySelector('span').innerText}`,
  );
  const text = [answer.querySelector('.said').innerText.trim(), sources.join('\n')].join('\n\n').trim();
  // Browsers offer the clipboard only to pages of this machine or over HTTPS.
  const copied = navigator.clipboard && (await navigator.clipboard.writeText(text).then(() => true, () => false));
  button.innerText = copied ? 'Copied' : 'Not allowed by the browser';
  setTimeout(() => { button.innerText = 'Copy'; }, 2000);
});
