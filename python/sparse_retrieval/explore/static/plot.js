"use strict";
// Recall against bytes as SVG. Knows nothing of the page: gets numbers, gives an element.

const SVG = "http://www.w3.org/2000/svg";

function svg(name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

function drawCurve(curve) {
  const width = 720, height = 340, left = 52, right = 90, top = 14, bottom = 46;
  const series = [["ours", "this index", curve.ours], ["pca", "PCA, 8 bits", curve.pca]]
    .filter(([, , points]) => points.length);
  const most = Math.max(...series.flatMap(([, , points]) => points.map((p) => p.bytes)));
  const step = [4, 8, 16, 32, 64, 128].find((size) => most / size <= 8) || 256;
  const limit = Math.ceil(most / step) * step;
  const x = (bytes) => left + (width - left - right) * bytes / limit;
  const y = (recall) => height - bottom - (height - top - bottom) * recall;
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  root.append(svg("title", {}, "Recall against bytes an item"));
  for (let recall = 0; recall <= 1.001; recall += 0.2) {
    root.append(svg("line", { class: "axis", x1: left, x2: width - right, y1: y(recall), y2: y(recall) }));
    root.append(svg("text", { x: left - 8, y: y(recall) + 4, "text-anchor": "end" }, recall.toFixed(1)));
  }
  for (let bytes = 0; bytes <= limit; bytes += step) {
    root.append(svg("text", { x: x(bytes), y: height - bottom + 18, "text-anchor": "middle" }, bytes));
  }
  root.append(svg("text", { x: (left + width - right) / 2, y: height - 8, "text-anchor": "middle" },
    "bytes an item"));
  root.append(svg("text", { x: 14, y: (top + height - bottom) / 2, "text-anchor": "middle",
    transform: `rotate(-90 14 ${(top + height - bottom) / 2})` }, `recall@${curve.depth}`));
  for (const [kind, label, points] of series) {
    const line = points.map((p) => `${x(p.bytes)},${y(p.recall)}`).join(" ");
    root.append(svg("polyline", { class: kind, points: line }));
    for (const point of points) {
      const dot = svg("circle", { class: `dot-${kind}`, cx: x(point.bytes), cy: y(point.recall), r: 4 });
      dot.append(svg("title", {}, `${point.setting}: ${point.bytes.toFixed(0)} bytes, ` +
        `recall ${point.recall.toFixed(3)}`));
      root.append(dot);
    }
    const last = points[points.length - 1];
    root.append(svg("text", { class: `name-${kind}`, x: Math.min(x(last.bytes) + 9, width - right + 9),
      y: y(last.recall) + 4 }, label));
  }
  return root;
}
