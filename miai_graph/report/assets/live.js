// Asks the training for what is new, as long as it goes on.

async function followTraining(store, state) {
  if (!store.data.live) return;
  state.textContent = "● training";
  try {
    while (!store.data.live.is_over) {
      const answer = await fetch(`data?after=${store.data.live.version}`, { cache: "no-store" });
      if (answer.status === 204) continue;
      if (!answer.ok) throw new Error(`the training answers ${answer.status}`);
      store.replace(await answer.json());
    }
    state.textContent = "✓ training is over";
  } catch (error) {
    if (!(error instanceof TypeError)) throw error;
    state.textContent = "training does not answer any more; this is its last state";
  }
}
