// The page of `npllm inspect --html`: its data are in it.

start();
show(JSON.parse(byId("data").textContent));
places();
document.documentElement.dataset.ready = "true";
