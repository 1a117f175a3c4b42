"use strict";
(() => {
  const bytes = (text) => Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));

  const explore = async (box) => {
    const side = Number(box.dataset.side);
    const size = Number(box.dataset.dimensions);
    const codes = new Int8Array(bytes(box.dataset.codes).buffer);
    const colours = bytes(box.dataset.colours);
    const image = box.querySelector("img");
    const told = box.querySelector("p");
    await image.decode();

    const norms = Float64Array.from({ length: side * side }, (_, patch) =>
      Math.hypot(...codes.subarray(patch * size, (patch + 1) * size)) || 1);
    const cosines = (chosen) => Float64Array.from(norms, (norm, patch) => {
      let sum = 0;
      for (let place = 0; place < size; place++) sum += codes[chosen * size + place] * codes[patch * size + place];
      return sum / (norm * norms[chosen]);
    });

    const canvas = document.createElement("canvas");
    canvas.width = image.naturalWidth;
    canvas.height = image.naturalHeight;
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "application");
    canvas.setAttribute("aria-label", `${image.alt}: similarity map; arrow keys choose the patch`);
    image.after(canvas);
    const pen = canvas.getContext("2d", { willReadFrequently: true });
    pen.drawImage(image, 0, 0);
    const grey = pen.getImageData(0, 0, canvas.width, canvas.height);
    for (let at = 0; at < grey.data.length; at += 4) {
      grey.data.fill((grey.data[at] + grey.data[at + 1] + grey.data[at + 2]) / 3, at, at + 3);
    }
    const map = document.createElement("canvas");
    map.width = map.height = side;
    const heat = map.getContext("2d");

    let chosen = Number(box.dataset.start);
    const draw = () => {
      const found = cosines(chosen);
      const least = found.reduce((a, b) => Math.min(a, b));
      const painted = heat.createImageData(side, side);
      found.forEach((cosine, patch) => {
        const level = Math.round(255 * Math.min(1, Math.max(0, (cosine - least) / Math.max(1 - least, 1e-12))));
        painted.data.set([...colours.subarray(3 * level, 3 * level + 3), 255], 4 * patch);
      });
      heat.putImageData(painted, 0, 0);
      pen.putImageData(grey, 0, 0);
      pen.globalAlpha = 0.6;
      pen.imageSmoothingEnabled = false;
      pen.drawImage(map, 0, 0, canvas.width, canvas.height);
      pen.globalAlpha = 1;
      const row = Math.floor(chosen / side);
      const column = chosen % side;
      const across = canvas.width / side;
      const down = canvas.height / side;
      for (const [colour, width] of [["black", 4], ["white", 2]]) {
        pen.strokeStyle = colour;
        pen.lineWidth = width;
        pen.strokeRect(column * across, row * down, across, down);
      }
      told.textContent = `Patch in row ${row + 1}, column ${column + 1} of ${side} x ${side}; least similar: cosine `
        + `${least.toFixed(2)}. Click another, in either picture, or use the arrow keys.`;
    };
    const choose = (event) => {
      const area = event.currentTarget.getBoundingClientRect();
      const place = (from, start, length) => Math.min(side - 1, Math.max(0, Math.floor(((from - start) / length) * side)));
      chosen = place(event.clientY, area.top, area.height) * side + place(event.clientX, area.left, area.width);
      draw();
    };
    image.addEventListener("click", choose);
    canvas.addEventListener("click", choose);
    canvas.addEventListener("keydown", (event) => {
      const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [0, 0];
      const row = Math.floor(chosen / side) + down;
      const column = (chosen % side) + right;
      if (!(down || right)) return;
      event.preventDefault();
      if (row >= 0 && row < side && column >= 0 && column < side) {
        chosen = row * side + column;
        draw();
      }
    });
    draw();
    box.hidden = false;
  };

  for (const box of document.querySelectorAll(".explorer")) explore(box);
})();
