"use strict";
// The gallery: filter, page, enlarge. Data reaches the page as text only (textContent), never as markup.
(() => {
  const PAGE = 24;
  const at = (id) => document.getElementById(id);
  const samples = JSON.parse(at("data").textContent);
  const filters = at("filters"), dialog = at("sample");
  const haystacks = samples.map((s) =>
    [s.id, ...s.messages.map((m) => m.text)].join("\n").toLowerCase());
  let found = [], asked, page = 0, shown = 0;

  function make(tag, kind, text) {
    const node = document.createElement(tag);
    if (kind) node.className = kind;
    if (text !== undefined) node.textContent = text;
    return node;
  }
  function picture([caption, uri], sample) {
    const image = make("img");
    image.src = uri;
    image.alt = `${sample.id}: ${caption}`;
    image.decoding = "async";
    return image;
  }
  function marks(sample, only) {
    const text = make("span", "words");
    text.dir = "auto";
    for (const [piece, supervised] of sample.pieces)
      if (supervised) text.append(make("mark", "", only ? piece.trim() : piece), only ? " " : "");
      else if (!only) text.append(piece);
    return text;
  }
  function badges(sample) {
    const row = make("span", "row");
    row.append(make("span", `badge ${sample.task}`, sample.task), make("span", "", sample.source),
      make("span", "", sample.split), make("span", "num", `${sample.tokens} tokens`));
    return row;
  }
  function card(sample, place) {
    const button = make("button", "card");
    button.type = "button";
    button.dataset.place = place;
    if (sample.pictures.length || sample.codes) {
      const shots = make("span", "shots");
      for (const one of sample.pictures) shots.append(picture(one, sample));
      if (!sample.pictures.length) shots.append(make("span", "none", `${sample.codes} codes; --model DIR decodes them`));
      button.append(shots);
    }
    const body = make("span", "body"), prompt = make("span", "words", sample.prompt);
    prompt.dir = "auto";
    const answer = marks(sample, true);
    answer.classList.add("answer");
    body.append(badges(sample), prompt, answer, make("span", "id", sample.id));
    button.append(body);
    button.addEventListener("click", () => enlarge(place));
    const item = make("li");
    item.append(button);
    return item;
  }
  function draw() {
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    page = Math.min(Math.max(page, 0), pages - 1);
    const first = page * PAGE, some = found.slice(first, first + PAGE);
    at("cards").replaceChildren(...some.map((sample, i) => card(sample, first + i)));
    at("found").textContent = found.length
      ? `${first + 1}–${first + some.length} of ${found.length} that match`
      : "No sample of this gallery matches.";
    at("place").textContent = `${page + 1} / ${pages}`;
    at("previous").disabled = page === 0;
    at("next").disabled = page === pages - 1;
  }
  function filter() {
    const { task, source, split, words } = Object.fromEntries(new FormData(filters));
    const now = JSON.stringify([task, source, split, words]);
    if (now === asked) return;  // leaving the text field fires a change event too
    asked = now;
    const needles = words.toLowerCase().split(/\s+/).filter(Boolean);
    found = samples.filter((s, i) => (!task || s.task === task) && (!source || s.source === source)
      && (!split || s.split === split) && needles.every((needle) => haystacks[i].includes(needle)));
    page = 0;
    draw();
  }
  function field(title, ...content) {
    const box = make("div", "field");
    box.append(make("h3", "", title), ...content);
    return box;
  }
  function words(text) {
    const box = make("div", "words", text);
    box.dir = "auto";
    return box;
  }
  function enlarge(place) {
    if (place < 0 || place >= found.length) return;
    shown = place;
    const sample = found[place], body = [badges(sample)];
    at("sample-title").textContent = sample.id;
    for (const message of sample.messages) {
      const large = make("div", "large"), parts = [];
      for (const one of message.pictures.map((i) => sample.pictures[i])) {
        const figure = make("figure");
        figure.append(picture(one, sample), make("figcaption", "", one[0]));
        large.append(figure);
      }
      if (message.pictures.length) parts.push(large);
      if (message.text) parts.push(words(message.text));
      if (parts.length) body.push(field(message.role[0].toUpperCase() + message.role.slice(1), ...parts));
    }
    const stream = marks(sample, false);
    stream.classList.add("stream", "mono");
    body.push(field(`Tokens: ${sample.tokens}, of which ${sample.supervised} supervised`, stream));
    at("sample-body").replaceChildren(...body);
    at("back").disabled = place === 0;
    at("forward").disabled = place === found.length - 1;
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
  }
  function turn(by) {
    page += by;
    draw();
    at("gallery").scrollIntoView();
  }
  for (const kind of ["input", "change"]) filters.addEventListener(kind, filter);
  filters.addEventListener("submit", (event) => event.preventDefault());
  at("previous").addEventListener("click", () => turn(-1));
  at("next").addEventListener("click", () => turn(1));
  at("back").addEventListener("click", () => enlarge(shown - 1));
  at("forward").addEventListener("click", () => enlarge(shown + 1));
  at("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") enlarge(shown - 1);
    if (event.key === "ArrowRight") enlarge(shown + 1);
  });
  dialog.addEventListener("close", () => {
    page = Math.floor(shown / PAGE);
    draw();
    document.querySelector(`[data-place="${shown}"]`)?.focus();
  });
  filter();
})();
