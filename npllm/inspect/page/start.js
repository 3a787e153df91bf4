// The page of `npllm inspect --html`: its data are in it.

start();
show(JSON.parse(byId("data").textContent));
places();
const followLink = () => follow(decodeURIComponent(location.hash.slice(1)));
window.addEventListener("hashchange", followLink);
document.addEventListener("click", (event) => { // following a link again does not change the address
  if (location.hash && event.target.closest("a")?.hash === location.hash) followLink();
});
followLink();
document.documentElement.dataset.ready = "true";
