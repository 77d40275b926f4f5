"use strict";
(() => {
  const coarse = matchMedia("(pointer: coarse)").matches;
  const config = {
    responsive: true,
    displaylogo: false,
    typesetMath: false,
    modeBarButtons: [["toImage"], ["zoom2d", "pan2d", "resetScale2d"]],
    showSendToCloud: false, // Plotly's own default would offer to upload the plotted data
    plotlyServerURL: "",
  };
  // Leaves out tick labels that would touch; the ladder is often too fine for a phone.
  const thinTicks = (axis, width) => {
    const pixels = (width - 50) / (axis.range[1] - axis.range[0]);
    let last = -Infinity;
    axis.ticktext = axis.ticktext.map((text, k) => {
      const at = Math.log10(axis.tickvals[k]) * pixels;
      if (at - last < 44) return "";
      last = at;
      return text;
    });
  };
  const plots = [...document.querySelectorAll(".plot")];
  for (const plot of plots) {
    const figure = JSON.parse(document.getElementById(plot.id + "-data").textContent);
    const small = "small" in plot.dataset;
    if (!small) thinTicks(figure.layout.xaxis, plot.clientWidth);
    figure.layout.dragmode = coarse || small ? false : "zoom"; // a finger scrolls the page
    Plotly.newPlot(plot, figure.data, figure.layout, { ...config, displayModeBar: coarse || small ? false : "hover" });
  }

  // On paper everything is open and every plot has the width of its column on the sheet.
  let opened = [];
  addEventListener("beforeprint", () => {
    document.documentElement.classList.add("printing");
    opened = [...document.querySelectorAll("details:not([open]):not([data-long])")];
    for (const details of opened) details.open = true;
    for (const plot of plots) {
      plot.dataset.height = plot.layout.height;
      Plotly.relayout(plot, { autosize: false, width: plot.clientWidth, height: Math.min(plot.layout.height, 460) });
    }
  });
  addEventListener("afterprint", () => {
    document.documentElement.classList.remove("printing");
    for (const details of opened) details.open = false;
    for (const plot of plots) {
      Plotly.relayout(plot, { autosize: true, width: null, height: Number(plot.dataset.height) });
    }
  });
})();
