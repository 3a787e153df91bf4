// An example in a frame says how tall it is, and its frame becomes as tall: there is one scroll bar, the page's.
addEventListener("message", (event) => {
  const height = event.data?.npllm?.height;
  for (const frame of document.querySelectorAll("iframe.example")) {
    if (event.source === frame.contentWindow && height > 0) frame.style.height = `${Math.ceil(height) + 2}px`;
  }
});
