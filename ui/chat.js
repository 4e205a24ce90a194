// Gradio names every message by its HTML source; without that label a screen reader reads the message itself.
const clean = () => {
  document.querySelectorAll('#chat [data-testid="bot"], #chat [data-testid="user"]').forEach((message) => {
    message.removeAttribute('aria-label');
  });
};
const chat = document.querySelector('#chat-main');
if (chat) new MutationObserver(clean).observe(chat, { childList: true, subtree: true });
