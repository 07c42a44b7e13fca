// Runs panels' transformations and field settings with Grafana's own library.
// stdin:  {mode: "dark" or "light", series: [name], panels: [{frames: [{refId, fields: [{name, type, values}]}],
//          transformations, fieldConfig}]}
// stdout: {theme: {part: colour}, series: {name: colour}, panels: [{columns: [name],
//          rows: [[text as Grafana writes it]], colors: [[colour]]}]}
"use strict";

// Grafana's library asks for a browser in two places: while it loads, and when it formats.
globalThis.navigator ??= { userAgent: "node", language: "en-US", languages: ["en-US"] };
const grafana = require("@grafana/data");
globalThis.window = {};

// The list names one transformer twice.
const transformers = new Map(Object.values(grafana.standardTransformers).map((one) => [one.id, one]));
grafana.standardTransformersRegistry.setInit(() =>
  [...transformers.values()].map((one) => ({
    id: one.id,
    name: one.name,
    description: one.description,
    transformation: async () => one,
  }))
);

const setting = (path, isCustom = false) => ({
  id: isCustom ? `custom.${path}` : path,
  path,
  name: path,
  isCustom,
  process: (value) => value,
  shouldApply: () => true,
  override: () => null,
  editor: () => null,
});
const settings = new grafana.Registry(() => [
  ...["unit", "decimals", "thresholds", "mappings", "links", "min", "max"].map((id) => setting(id)),
  ...["align", "cellOptions"].map((id) => setting(id, true)),
]);

function first(observable) {
  return new Promise((resolve, reject) => observable.subscribe({ next: resolve, error: reject }));
}

async function display({ frames, transformations, fieldConfig }, theme) {
  const unknown = transformations.filter((one) => !transformers.has(one.id));
  if (unknown.length) {
    throw new Error(`Grafana has no transformation ${unknown.map((one) => one.id)}`);
  }
  const made = await first(grafana.transformDataFrame(transformations, frames.map(grafana.toDataFrame)));
  const shown = grafana.applyFieldOverrides({
    data: made,
    fieldConfig,
    fieldConfigRegistry: settings,
    replaceVariables: (text) => text,
    theme,
    timeZone: "utc",
  });
  const table = shown.find((frame) => frame.length) ?? shown[0] ?? { fields: [], length: 0 };
  const fields = table.fields;
  const cells = Array.from({ length: table.length }, (_, row) => fields.map((f) => f.display(f.values[row])));
  return {
    columns: fields.map((field) => grafana.getFieldDisplayName(field, table, shown)),
    rows: cells.map((row) => row.map((cell) => grafana.formattedValueToString(cell))),
    colors: cells.map((row) => row.map((cell) => cell.color)),
  };
}

function parts({ colors, visualization }) {
  const named = ["green", "yellow", "orange", "red", "blue", "text"];
  return {
    ...Object.fromEntries(named.map((name) => [name, visualization.getColorByName(name)])),
    canvas: colors.background.canvas,
    panel: colors.background.primary,
    border: colors.border.weak,
    words: colors.text.primary,
    faint: colors.text.secondary,
    link: colors.text.link,
  };
}

// The colours of series by their names, as charts of the mode `palette-classic-by-name` have them.
function named(names, theme) {
  const mode = grafana.fieldColorModeRegistry.get("palette-classic-by-name");
  const colour = (name) => mode.getCalculator({ name, type: "number", config: {}, values: [] }, theme)(0, 0);
  return Object.fromEntries(names.map((name) => [name, colour(name)]));
}

async function main() {
  const chunks = [];
  for await (const chunk of process.stdin) chunks.push(chunk);
  const { mode, series = [], panels } = JSON.parse(Buffer.concat(chunks).toString("utf-8"));
  const theme = grafana.createTheme({ colors: { mode } });
  const shown = await Promise.all(panels.map((panel) => display(panel, theme)));
  process.stdout.write(JSON.stringify({ theme: parts(theme), series: named(series, theme), panels: shown }));
}

main();
