{
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const make = (tag, settings = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), settings);
    element.append(...children);
    return element;
  };

  // What is shown. `dim` and `step` are null where nothing is moved; `dim` belongs to the lead.
  const state = { lead: 0, sample: 0, dim: null, step: null };
  const lead = () => data.methods[state.lead];

  // One decimal more than tells two values apart.
  const gap = Math.min(...data.values.slice(1).map((value, step) => value - data.values[step]));
  const decimals = Math.min(Math.max(Math.ceil(-Math.log10(gap)) + 1, 0), 12);
  const number = (value) => {
    const digits = Math.abs(value).toFixed(decimals);
    return Number(digits) === 0 ? digits : `${value < 0 ? "−" : "+"}${digits}`;
  };

  // Where a slider may rest: the values, and the sample's own, whose frame is the unmoved one.
  const stopsOf = (dim) => {
    const own = lead().own[state.sample][dim];
    const stops = data.values
      .map((value, step) => ({ value, step }))
      .filter((stop) => stop.value !== own);
    return [...stops, { value: own, step: null }].sort((a, b) => a.value - b.value);
  };

  // The dimension a method moves while the lead moves its own, or null if it has none.
  const dimOf = (method) => {
    if (state.step === null) return null;
    if (method === lead()) return state.dim;
    const dim = byId("match").value === "rank"
      ? method.order[lead().order.indexOf(state.dim)] : state.dim;
    return dim < method.labels.length ? dim : null;
  };

  const sheets = new Map();
  const draw = (canvas, method, sample, cellNow) => {
    const uri = method.sheets[sample];
    if (!sheets.has(uri)) sheets.set(uri, Object.assign(new Image(), { src: uri }));
    const image = sheets.get(uri);
    const paint = () => {
      const cell = cellNow();
      if (cell === null) return;
      const { width, height, columns } = method;
      const [x, y] = [cell % columns, Math.floor(cell / columns)];
      canvas.getContext("2d").drawImage(
        image, x * width, y * height, width, height, 0, 0, width, height);
    };
    if (image.complete) paint(); else image.addEventListener("load", paint, { once: true });
  };
  const baseCell = (method) => method.labels.length * data.values.length;

  // Smoothing a picture of few pixels shows the smoothing.
  const FEW = 48;
  const picture = ({ width, height }) =>
    make("canvas", { width, height, className: Math.max(width, height) < FEW ? "small" : "" });

  const tiles = data.methods.map((method, index) => {
    const canvas = picture(method);
    const moved = make("small");
    const button = make("button", { type: "button", className: "tile" },
      canvas, make("span", {}, method.name), moved);
    button.addEventListener("click", () => choose({ lead: index }));
    return { method, index, canvas, moved, button };
  });
  byId("stage").append(...tiles.map((tile) => tile.button));

  const drawTile = ({ method, index, canvas, moved, button }) => {
    button.hidden = !byId("beside").checked && index !== state.lead;
    button.setAttribute("aria-pressed", String(index === state.lead));
    const { sample } = state;
    draw(canvas, method, sample, () => {
      if (sample !== state.sample) return null;
      const dim = dimOf(method);
      return dim === null ? baseCell(method) : dim * data.values.length + state.step;
    });
    const dim = dimOf(method);
    moved.textContent = state.step === null ? "unmoved"
      : dim === null ? "no such dimension"
      : `${method.labels[dim]} = ${number(data.values[state.step])}`;
    button.setAttribute("aria-label",
      `${method.name}, sample ${sample + 1}: ${moved.textContent}`);
  };

  const thumbnails = data.methods[0].sheets.map((_, sample) => {
    const input = make("input", { type: "radio", name: "sample", value: sample });
    input.addEventListener("change", () => choose({ sample }));
    const place = make("span");
    byId("samples").append(
      make("label", { title: `Sample ${sample + 1}` }, input, place,
        make("span", { className: "only-read" }, `Sample ${sample + 1}`)));
    return { input, place, sample };
  });

  const drawThumbnails = () => thumbnails.forEach(({ input, place, sample }) => {
    const method = lead();
    input.checked = sample === state.sample;
    const canvas = picture(method);
    place.replaceChildren(canvas);
    draw(canvas, method, sample, () => baseCell(method));
  });

  let sliders = [];
  const buildSliders = () => {
    const { activeness } = lead();
    const most = Math.max(...activeness);
    sliders = lead().order.map((dim) => {
      const input = make("input", { type: "range", step: "any", id: `dim-${dim}` });
      const track = make("div", { className: "track" },
        make("i", { className: "way" }), make("i", { className: "mark" }), input);
      const value = make("output");
      value.htmlFor = input.id;
      const row = make("div", { className: "slider" },
        make("label", { htmlFor: input.id }, lead().labels[dim]),
        track, value);
      const bar = make("i");
      bar.style.width = `${most > 0 ? 100 * activeness[dim] / most : 0}%`;
      row.append(make("div", { className: "activeness" },
        make("div", { className: "bar" }, bar),
        make("span", {}, `activeness ${activeness[dim].toPrecision(3)}`)));
      input.addEventListener("input", () => moveTo(dim, nearest(dim, input.valueAsNumber)));
      input.addEventListener("keydown", (event) => byKey(event, dim));
      return { dim, input, track, value, row };
    });
    byId("sliders").replaceChildren(...sliders.map((slider) => slider.row));
    byId("sliders-title").textContent =
      data.methods.length > 1 ? `Dimensions of “${lead().name}”` : "Dimensions";
  };

  const drawSliders = () => sliders.forEach(({ dim, input, track, value, row }) => {
    const stops = stopsOf(dim);
    const own = lead().own[state.sample][dim];
    const isMoved = dim === state.dim;
    const now = isMoved ? data.values[state.step] : own;
    const [low, high] = [stops[0].value, stops[stops.length - 1].value];
    Object.assign(input, { min: low, max: high });
    input.value = now;
    track.style.setProperty("--own", (own - low) / (high - low));
    track.style.setProperty("--now", (now - low) / (high - low));
    value.textContent = number(now);
    input.setAttribute("aria-valuetext", isMoved ? number(now) : `${number(now)}, not moved`);
    row.classList.toggle("moved", isMoved);
  });

  const nearest = (dim, value) => stopsOf(dim).reduce((best, stop) =>
    Math.abs(stop.value - value) < Math.abs(best.value - value) ? stop : best);

  const moveTo = (dim, stop) =>
    choose(stop.step === null ? { dim: null, step: null } : { dim, step: stop.step });

  const byKey = (event, dim) => {
    const stops = stopsOf(dim);
    const here = stops.findIndex(({ step }) => step === (dim === state.dim ? state.step : null));
    const to = {
      ArrowLeft: here - 1, ArrowDown: here - 1, ArrowRight: here + 1, ArrowUp: here + 1,
      PageDown: here - 3, PageUp: here + 3, Home: 0, End: stops.length - 1,
    }[event.key];
    if (to === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    moveTo(dim, stops[Math.min(Math.max(to, 0), stops.length - 1)]);
  };

  const choose = (changes) => {
    const before = { ...state };
    // The same place in the new lead's list: what its tile showed a moment ago stays.
    const dim = "lead" in changes ? dimOf(data.methods[changes.lead]) : state.dim;
    Object.assign(state, { dim }, changes);
    if (state.dim === null) state.step = null;
    if (state.lead !== before.lead) buildSliders();
    if (state.lead !== before.lead || state.sample !== before.sample) drawThumbnails();
    byId("method").value = state.lead;
    byId("match-label").hidden = data.methods.length < 2 || !byId("beside").checked;
    byId("stage").dataset.shown = byId("beside").checked ? tiles.length : 1;
    drawSliders();
    tiles.forEach(drawTile);
  };

  byId("method").addEventListener("change", (event) => choose({ lead: Number(event.target.value) }));
  byId("beside").addEventListener("change", () => choose({}));
  byId("match").addEventListener("change", () => choose({}));
  byId("reset").addEventListener("click", () => choose({ dim: null, step: null }));
  byId("controls").addEventListener("submit", (event) => event.preventDefault());

  buildSliders();
  drawThumbnails();
  choose({});
}
